//! Header fields of routes: which names and values there are, and which of them a route may change.

use std::sync::Arc;

use heddle_model::routing::HeaderEdit;

use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;

/// Most entries of `set`, `add` and `remove`.
const EDITS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 4096;

/// Fields that say how a message is framed or sent over one connection (RFC 9110 §7.6.1, §8.6): who changes them breaks it.
const OF_CONNECTIONS: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// RFC 9110 §5.6.2, of a length that names may have.
pub(crate) fn is_token(text: &str) -> bool {
    let is_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_byte)
}

/// The `name` of an item at `at`, in lower case.
pub(crate) fn name(at: &str, text: &str, problems: &mut Problems) -> Option<Arc<str>> {
    let lower = text.to_ascii_lowercase();
    let told = shortened(text);
    let message = if !is_token(text) {
        format!("`{told}` is no name of a header field")
    } else if lower.starts_with("x-heddle-") {
        format!("`{told}` is set by agents and taken from no application")
    } else {
        return Some(lower.into());
    };
    problems.error(format!("{at}.name"), message);
    None
}

/// `requestHeaderModifier` or `responseHeaderModifier`.
pub(super) fn edit(place: &Place<'_>, problems: &mut Problems) -> HeaderEdit {
    place.is_mapping_of(&["set", "add", "remove"], problems);
    let mut pairs = |key: &str| {
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for place in place.items(key, EDITS_MAX, problems) {
            place.is_mapping_of(&["name", "value"], problems);
            let name: Option<String> = place.required("name", problems);
            let value: Option<String> = place.required("value", problems);
            let name = name.and_then(|text| changeable(&place, &text, problems));
            let value = value.filter(|text| is_value(&place.at("value"), text, problems));
            let (Some(name), Some(value)) = (name, value) else { continue };
            // Of each name the first counts.
            if pairs.iter().all(|(other, _)| *other != name) {
                pairs.push((name, value.into()));
            }
        }
        pairs.into()
    };
    let (set, add) = (pairs("set"), pairs("add"));
    let mut remove: Vec<Arc<str>> = Vec::new();
    for item in place.items("remove", EDITS_MAX, problems) {
        let name = item.value::<String>(problems).and_then(|text| removable(&item, &text, problems));
        remove.extend(name.filter(|name| !remove.contains(name)));
    }
    HeaderEdit { set, add, remove: remove.into() }
}

fn changeable(place: &Place<'_>, text: &str, problems: &mut Problems) -> Option<Arc<str>> {
    let name = name(place.path(), text, problems)?;
    refuse_unchangeable(&place.at("name"), &name, problems).then_some(name)
}

fn removable(place: &Place<'_>, text: &str, problems: &mut Problems) -> Option<Arc<str>> {
    let mut found = Problems::default();
    let name = name("", text, &mut found);
    // The item is the name itself.
    for problem in found.errors {
        problems.error(place.path(), problem.message);
    }
    name.filter(|name| refuse_unchangeable(place.path(), name, problems))
}

fn refuse_unchangeable(at: &str, name: &str, problems: &mut Problems) -> bool {
    if name == "host" {
        problems.error(at, "`host` is changed by `urlRewrite.hostname`");
        return false;
    }
    if OF_CONNECTIONS.contains(&name) {
        problems.error(at, format!("`{name}` says how a message travels: only agents may change it"));
        return false;
    }
    true
}

/// RFC 9110 §5.5.
fn is_value(at: &str, text: &str, problems: &mut Problems) -> bool {
    let message = if text.is_empty() || text.len() > VALUE_BYTES_MAX {
        format!("{} bytes: 1 to {VALUE_BYTES_MAX}", text.len())
    } else if text.chars().any(|c| c.is_ascii_control() && c != '\t') {
        format!("`{}` has control characters: no value has", shortened(text).escape_debug())
    } else if text.trim_matches([' ', '\t']) != text {
        format!("`{}` has blanks at its ends: no value has", shortened(text))
    } else {
        return true;
    };
    problems.error(at, message);
    false
}
