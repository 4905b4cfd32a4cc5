//! The Gateway API's ReferenceGrant: which routes of other namespaces may lead to Services of its own. One that is not right in every part grants
//! nothing. What it grants to other kinds, or of them, is for others to read.

use std::sync::Arc;

use heddle_model::routing::{ReferenceGrant, RouteKind};

use crate::meta::{self, ObjectMeta};
use crate::node::{Node, shortened};
use crate::object::Dated;
use crate::place::Place;
use crate::problem::Problems;
use crate::route::GROUP;

/// Most entries of `from` and of `to`.
const LISTED_MAX: usize = 16;

/// Converts a grant; `None` if anything is wrong.
pub(crate) fn convert(
    namespace: &str,
    name: &str,
    root: &Node<'_>,
    problems: &mut Problems,
) -> Option<Dated<ReferenceGrant>> {
    let root = Place::new(root, "");
    root.is_mapping_of(&["apiVersion", "kind", "metadata", "spec"], problems);
    let metadata: Option<ObjectMeta> = root.field("metadata", problems);
    let created = metadata.and_then(|metadata| metadata.created(problems));
    let Some(spec) = root.get("spec") else {
        problems.error("spec", "is missing");
        return None;
    };
    spec.is_mapping_of(&["from", "to"], problems);
    let mut from = Vec::new();
    for place in listed(&spec, "from", problems) {
        place.is_mapping_of(&["group", "kind", "namespace"], problems);
        let (group, kind) = (group(&place, problems), place.required::<String>("kind", problems));
        let of: Option<String> = place.required("namespace", problems);
        if let Some(of) = of.as_deref().filter(|of| !meta::is_dns_label(of)) {
            problems.error(place.at("namespace"), format!("`{}` is no name of a namespace", shortened(of)));
        }
        let (Some(group), Some(kind), Some(of)) = (group, kind, of) else { continue };
        let kinds = [RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp];
        let found = kinds.into_iter().find(|known| group == GROUP && known.as_str() == kind);
        from.extend(found.map(|kind| (kind, Arc::from(of))));
    }
    let mut to = Vec::new();
    for place in listed(&spec, "to", problems) {
        place.is_mapping_of(&["group", "kind", "name"], problems);
        let (group, kind) = (group(&place, problems), place.required::<String>("kind", problems));
        let service: Option<String> = place.field("name", problems);
        if let Some(service) = service.as_deref().filter(|service| !meta::is_dns_subdomain(service)) {
            problems.error(place.at("name"), format!("`{}` is no name", shortened(service)));
        }
        if group.as_deref() == Some("") && kind.as_deref() == Some("Service") {
            to.push(service.map(Arc::from));
        }
    }
    let key = (namespace.into(), name.into());
    let grant = ReferenceGrant { key, from: from.into(), to: to.into() };
    problems.errors.is_empty().then(|| Dated::new(created, grant))
}

fn listed<'n>(spec: &Place<'n>, key: &str, problems: &mut Problems) -> Vec<Place<'n>> {
    if spec.count(key) == 0 {
        problems.error(spec.at(key), "is missing, or empty: it grants nothing");
    }
    spec.items(key, LISTED_MAX, problems)
}

/// `group`, which must be there, though it may be empty.
fn group(place: &Place<'_>, problems: &mut Problems) -> Option<String> {
    place.required("group", problems)
}
