//! What a route is attached to (`spec.parentRefs`), and for which host names (`spec.hostnames`).

use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::routing::{ParentRef, ParentTarget};

use super::GROUP;
use crate::meta;
use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;

/// Most entries of `spec.parentRefs`.
const PARENTS_MAX: usize = 32;
/// In place of host names that cannot be read at all.
const UNREADABLE: &str = "?";

/// Those that can be read; what is wrong with the others is told.
pub(super) fn convert(namespace: &str, spec: &Place<'_>, problems: &mut Problems) -> Box<[ParentRef]> {
    let mut parents: Vec<ParentRef> = Vec::new();
    for place in spec.items("parentRefs", PARENTS_MAX, problems) {
        let Some(parent) = parent(namespace, &place, problems) else { continue };
        let is_bare = |parent: &ParentRef| parent.section.is_none() && parent.port.is_none();
        match parents.iter().find(|other| other.target == parent.target) {
            Some(_) if parents.contains(&parent) => {
                problems.error(place.path(), "names a parent that is named already")
            }
            Some(other) if is_bare(other) || is_bare(&parent) => {
                let message = "names a parent that is named already: then each needs `sectionName` or `port`";
                problems.error(place.path(), message);
            }
            _ => parents.push(parent),
        }
    }
    parents.into()
}

fn parent(namespace: &str, place: &Place<'_>, problems: &mut Problems) -> Option<ParentRef> {
    let before = problems.errors.len();
    place.is_mapping_of(&["group", "kind", "namespace", "name", "sectionName", "port"], problems);
    let group: Option<String> = place.field("group", problems);
    let kind: Option<String> = place.field("kind", problems);
    let of: Option<String> = place.field("namespace", problems);
    let name: String = place.required("name", problems)?;
    let section: Option<String> = place.field("sectionName", problems);
    let port = place.number("port", 1..=i64::from(u16::MAX), problems);
    let (group, kind) = (group.as_deref().unwrap_or(GROUP), kind.as_deref().unwrap_or("Gateway"));
    let namespace = of.as_deref().unwrap_or(namespace);
    let is_service = matches!(group, "" | "core") && kind == "Service";
    if !meta::is_dns_label(namespace) {
        problems.error(place.at("namespace"), format!("`{}` is no name of a namespace", shortened(namespace)));
    }
    let is_name = if is_service { meta::is_dns_label(&name) } else { meta::is_dns_subdomain(&name) };
    if !is_name {
        problems.error(place.at("name"), format!("`{}` is no name of a {}", shortened(&name), shortened(kind)));
    }
    if let Some(section) = section.as_deref().filter(|section| !meta::is_dns_subdomain(section)) {
        let message =
            format!("`{}` is no name of a {}", shortened(section), if is_service { "port" } else { "section" });
        problems.error(place.at("sectionName"), message);
    }
    if problems.errors.len() > before {
        return None;
    }
    let target = if is_service {
        ParentTarget::Service((namespace.into(), name.into()))
    } else {
        ParentTarget::Other(format!("{kind}/{namespace}/{name}").into())
    };
    Some(ParentRef { target, section: section.map(Arc::from), port })
}

/// `spec.hostnames`, in lower case, at most `max`. What is no name stands there like one, so that a route whose names cannot be read is not
/// about all.
pub(super) fn hostnames(spec: &Place<'_>, max: usize, problems: &mut Problems) -> Box<[Arc<str>]> {
    let before = problems.errors.len();
    let mut names: Vec<Arc<str>> = Vec::new();
    for place in spec.items("hostnames", max, problems) {
        let Some(text) = place.value::<String>(problems) else { continue };
        let lower = text.to_ascii_lowercase();
        if is_hostname(lower.strip_prefix("*.").unwrap_or(&lower)) {
            names.push(lower.into());
        } else {
            let message = format!("`{}` is no host name, nor `*.` and one", shortened(&text));
            problems.error(place.path(), message);
            names.push(shortened(&lower).into());
        }
    }
    if names.is_empty() && problems.errors.len() > before {
        names.push(UNREADABLE.into());
    }
    names.into()
}

/// A host name in lower case that is no address.
pub(super) fn is_hostname(text: &str) -> bool {
    meta::is_dns_subdomain(text) && text.parse::<IpAddr>().is_err()
}
