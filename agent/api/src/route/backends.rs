//! Where a rule leads (`backendRefs`, and `backendRef` of a mirror). What is wrong with one harms its own share only.

use std::sync::Arc;

use heddle_model::routing::{Backend, BackendProblem, BackendRef, Filters};

use super::{Reader, filters};
use crate::meta;
use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;

/// Most entries of `backendRefs`.
const BACKENDS_MAX: usize = 16;
/// Greatest `weight`.
const WEIGHT_MAX: i64 = 1_000_000;

/// `backendRefs` of a rule; `has_filters` where each may have its own.
pub(super) fn convert(
    reader: &mut Reader<'_>,
    rule: &Place<'_>,
    has_filters: bool,
    problems: &mut Problems,
) -> Box<[Backend]> {
    let places = rule.items("backendRefs", BACKENDS_MAX, problems);
    places.iter().map(|place| backend(reader, place, has_filters, problems)).collect()
}

fn backend(reader: &mut Reader<'_>, place: &Place<'_>, has_filters: bool, problems: &mut Problems) -> Backend {
    // The share of one whose weight nobody can read is unknown, and so are those of the others: that is the rule's trouble.
    let weight = place.number("weight", 0..=WEIGHT_MAX, problems).unwrap_or(1);
    let mut own = Problems::default();
    let known: &[&str] = match has_filters {
        true => &["group", "kind", "namespace", "name", "port", "weight", "filters"],
        false => &["group", "kind", "namespace", "name", "port", "weight"],
    };
    let to = reference(reader, place, known, &mut own);
    let filters = if has_filters { filters::of_backend(place, &mut own) } else { Filters::default() };
    Backend { to: reader.settle(to, own), weight, filters }
}

/// The one `backendRef` of a mirror.
pub(super) fn of_mirror(reader: &mut Reader<'_>, place: &Place<'_>) -> BackendRef {
    let mut own = Problems::default();
    let to = reference(reader, place, &["group", "kind", "namespace", "name", "port"], &mut own);
    reader.settle(to, own)
}

fn reference(reader: &Reader<'_>, place: &Place<'_>, known: &[&str], problems: &mut Problems) -> Option<BackendRef> {
    if !place.is_mapping_of(known, problems) {
        return None;
    }
    let group: Option<String> = place.field("group", problems);
    let kind: Option<String> = place.field("kind", problems);
    let of: Option<String> = place.field("namespace", problems);
    let name: String = place.required("name", problems)?;
    let (group, kind) = (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or("Service"));
    if !matches!(group, "" | "core") || kind != "Service" {
        let told: Arc<str> = match group {
            "" => shortened(kind).as_ref().into(),
            group => format!("{}/{}", shortened(group), shortened(kind)).into(),
        };
        problems.error(place.at("kind"), format!("`{told}` is not supported: a Service (group \"\")"));
        return Some(BackendRef::Invalid(BackendProblem::InvalidKind(told)));
    }
    let port = place.number("port", 1..=i64::from(u16::MAX), problems);
    if place.get("port").is_none() {
        problems.error(place.at("port"), "is missing: a Service is called at a port");
    }
    let namespace = of.as_deref().unwrap_or(reader.namespace);
    if !meta::is_dns_label(namespace) {
        problems.error(place.at("namespace"), format!("`{}` is no name of a namespace", shortened(namespace)));
    }
    if !meta::is_dns_label(&name) {
        problems.error(place.at("name"), format!("`{}` is no name of a Service", shortened(&name)));
    }
    Some(BackendRef::Service { service: (namespace.into(), name.into()), port: port? })
}

impl Reader<'_> {
    /// What a reference is with what was found wrong beside it, which is told.
    fn settle(&mut self, to: Option<BackendRef>, own: Problems) -> BackendRef {
        let first = own.errors.first().map_or_else(String::new, |problem| problem.told());
        let is_right = own.errors.is_empty();
        self.of_backends.errors.extend(own.errors);
        match to {
            Some(to @ BackendRef::Invalid(_)) => to,
            Some(to) if is_right => to,
            _ => BackendRef::Invalid(BackendProblem::UnsupportedValue(first.into())),
        }
    }
}
