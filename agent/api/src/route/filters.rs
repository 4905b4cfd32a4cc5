//! What a rule does to requests and responses (`filters`). One that is not supported makes its rule invalid, never is it left out.

use std::sync::Arc;
use std::time::Duration;

use heddle_model::routing::{Cors, Filters, Mirror, PathRewrite, Redirect, Rewrite};
use heddle_model::traffic::Share;

use super::{Reader, backends, fields, matches, parents};
use crate::meta;
use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;
use crate::traffic_policy::{self, FractionFields};

/// Most entries of `filters`.
const FILTERS_MAX: usize = 16;
/// Most entries of `allowOrigins`, `allowHeaders` and `exposeHeaders`.
const CORS_MAX: usize = 64;
const CORS_METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"];
const ORIGIN_BYTES_MAX: usize = 253;

#[derive(Clone, Copy, PartialEq)]
enum Type {
    RequestHeaders,
    ResponseHeaders,
    Mirror,
    Redirect,
    Rewrite,
    Cors,
}

/// Of a GRPCRoute only the first three.
const TYPES: [(&str, &str, Type); 6] = [
    ("RequestHeaderModifier", "requestHeaderModifier", Type::RequestHeaders),
    ("ResponseHeaderModifier", "responseHeaderModifier", Type::ResponseHeaders),
    ("RequestMirror", "requestMirror", Type::Mirror),
    ("RequestRedirect", "requestRedirect", Type::Redirect),
    ("URLRewrite", "urlRewrite", Type::Rewrite),
    ("CORS", "cors", Type::Cors),
];

/// Types that the Gateway API knows and this agent does not.
const UNSUPPORTED: [(&str, &str); 2] = [("ExtensionRef", "extensionRef"), ("ExternalAuth", "externalAuth")];

/// Those of a rule of an HTTPRoute.
pub(super) fn of_http(reader: &mut Reader<'_>, rule: &Place<'_>, problems: &mut Problems) -> Filters {
    let filters = convert(Some(reader), rule, &TYPES, problems);
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        problems.error(rule.at("filters"), "has RequestRedirect beside URLRewrite: one or the other");
    }
    if filters.redirect.is_some() && rule.count("backendRefs") > 0 {
        problems.error(rule.at("backendRefs"), "beside a RequestRedirect filter, which answers every request");
    }
    filters
}

/// Those of a rule of a GRPCRoute.
pub(super) fn of_grpc(reader: &mut Reader<'_>, rule: &Place<'_>, problems: &mut Problems) -> Filters {
    convert(Some(reader), rule, &TYPES[..3], problems)
}

/// Those of one backend.
pub(super) fn of_backend(backend: &Place<'_>, problems: &mut Problems) -> Filters {
    convert(None, backend, &TYPES[..2], problems)
}

/// Of `types` only; `reader` where there may be mirrors.
fn convert(
    mut reader: Option<&mut Reader<'_>>,
    of: &Place<'_>,
    types: &[(&str, &'static str, Type)],
    problems: &mut Problems,
) -> Filters {
    let mut filters = Filters::default();
    let mut mirrors = Vec::new();
    let mut seen = Vec::new();
    for place in of.items("filters", FILTERS_MAX, problems) {
        let Some((of_type, fields)) = typed(&place, types, problems) else { continue };
        if seen.contains(&of_type) && of_type != Type::Mirror {
            problems.error(place.at("type"), "is there twice: one filter of the type is the most");
            continue;
        }
        seen.push(of_type);
        match of_type {
            Type::RequestHeaders => filters.request_headers = Some(fields::edit(&fields, problems)),
            Type::ResponseHeaders => filters.response_headers = Some(fields::edit(&fields, problems)),
            Type::Mirror => mirrors.extend(reader.as_mut().and_then(|reader| mirror(reader, &fields, problems))),
            Type::Redirect => filters.redirect = redirect(&fields, problems),
            Type::Rewrite => filters.rewrite = Some(rewrite(&fields, problems)),
            Type::Cors => filters.cors = Some(cors(&fields, problems)),
        }
    }
    filters.mirrors = mirrors.into();
    filters
}

/// The type of a filter, and what it says.
fn typed<'n>(
    place: &Place<'n>,
    types: &[(&str, &'static str, Type)],
    problems: &mut Problems,
) -> Option<(Type, Place<'n>)> {
    let mut known: Vec<&str> = vec!["type"];
    known.extend(TYPES.iter().map(|(_, field, _)| *field));
    known.extend(UNSUPPORTED.iter().map(|(_, field)| *field));
    if !place.is_mapping_of(&known, problems) {
        return None;
    }
    let word: String = place.required("type", problems)?;
    let Some((word, field, of_type)) = types.iter().find(|(known, ..)| *known == word) else {
        let words: Vec<String> = types.iter().map(|(word, ..)| format!("`{word}`")).collect();
        let message = format!("`{}` is not supported here: {}", shortened(&word), words.join(" or "));
        problems.error(place.at("type"), message);
        return None;
    };
    for other in known.iter().filter(|known| *known != field && **known != "type") {
        if place.get(other).is_some() {
            problems.error(place.at(other), format!("beside `type: {word}`, which has `{field}`"));
        }
    }
    let fields = place.get(field);
    if fields.is_none() {
        problems.error(place.at(field), format!("is missing: `type: {word}` needs it"));
    }
    Some((*of_type, fields?))
}

fn mirror(reader: &mut Reader<'_>, place: &Place<'_>, problems: &mut Problems) -> Option<Mirror> {
    place.is_mapping_of(&["backendRef", "percent", "fraction"], problems);
    let share = share(place, problems);
    let Some(to) = place.get("backendRef") else {
        problems.error(place.at("backendRef"), "is missing");
        return None;
    };
    Some(Mirror { to: backends::of_mirror(reader, &to), share: share? })
}

/// `percent` or `fraction`; all without either. What cannot be read is told, and stands for nothing.
fn share(place: &Place<'_>, problems: &mut Problems) -> Option<Share> {
    let percent: Option<i64> = place.field("percent", problems);
    let fraction: Option<FractionFields> = place.field("fraction", problems);
    let is_read =
        percent.is_some() == place.get("percent").is_some() && fraction.is_some() == place.get("fraction").is_some();
    if is_read { traffic_policy::share(place.path(), percent, fraction.as_ref(), problems) } else { None }
}

fn redirect(place: &Place<'_>, problems: &mut Problems) -> Option<Redirect> {
    place.is_mapping_of(&["scheme", "hostname", "path", "port", "statusCode"], problems);
    let scheme: Option<String> = place.field("scheme", problems);
    let words = [("http", "http"), ("https", "https")];
    let scheme = scheme.and_then(|text| meta::one_of(problems, &place.at("scheme"), &text, &words));
    let status = match place.field::<i64>("statusCode", problems) {
        None => 302,
        Some(status @ (301 | 302 | 303 | 307 | 308)) => u16::try_from(status).unwrap_or(302),
        Some(status) => {
            problems.error(place.at("statusCode"), format!("{status} is none of 301, 302, 303, 307, 308"));
            return None;
        }
    };
    Some(Redirect {
        scheme: scheme.map(Arc::from),
        hostname: hostname(place, problems),
        path: path(place, problems),
        port: place.number("port", 1..=i64::from(u16::MAX), problems),
        status,
    })
}

fn rewrite(place: &Place<'_>, problems: &mut Problems) -> Rewrite {
    place.is_mapping_of(&["hostname", "path"], problems);
    Rewrite { hostname: hostname(place, problems), path: path(place, problems) }
}

fn hostname(place: &Place<'_>, problems: &mut Problems) -> Option<Arc<str>> {
    let text: String = place.field("hostname", problems)?;
    let lower = text.to_ascii_lowercase();
    if !parents::is_hostname(&lower) {
        problems.error(place.at("hostname"), format!("`{}` is no host name", shortened(&text)));
        return None;
    }
    Some(lower.into())
}

fn path(place: &Place<'_>, problems: &mut Problems) -> Option<PathRewrite> {
    let place = place.get("path")?;
    place.is_mapping_of(&["type", "replaceFullPath", "replacePrefixMatch"], problems);
    let word: String = place.required("type", problems)?;
    let words = [("ReplaceFullPath", ("replaceFullPath", true)), ("ReplacePrefixMatch", ("replacePrefixMatch", false))];
    let (field, is_full) = meta::one_of(problems, &place.at("type"), &word, &words)?;
    let other = if is_full { "replacePrefixMatch" } else { "replaceFullPath" };
    if place.get(other).is_some() {
        problems.error(place.at(other), format!("beside `type: {word}`, which has `{field}`"));
    }
    let text: String = place.required(field, problems)?;
    let at = place.at(field);
    let is_empty_prefix = !is_full && text.is_empty();
    let is_right = is_empty_prefix || matches::is_path(&at, &text, problems);
    is_right.then(|| if is_full { PathRewrite::Full(text.into()) } else { PathRewrite::Prefix(text.into()) })
}

fn cors(place: &Place<'_>, problems: &mut Problems) -> Cors {
    let known = ["allowOrigins", "allowCredentials", "allowMethods", "allowHeaders", "exposeHeaders", "maxAge"];
    place.is_mapping_of(&known, problems);
    let mut list = |key: &str, max: usize, is_right: &dyn Fn(&str) -> bool, wanted: &str| {
        let mut texts: Vec<Arc<str>> = Vec::new();
        for item in place.items(key, max, problems) {
            let Some(text) = item.value::<String>(problems) else { continue };
            if !is_right(&text) {
                problems.error(item.path(), format!("`{}` is no {wanted}", shortened(&text)));
            } else if !texts.iter().any(|other| **other == *text) {
                texts.push(text.into());
            }
        }
        if texts.len() > 1 && texts.iter().any(|text| **text == *"*") && key != "exposeHeaders" {
            problems.error(place.at(key), "has `*` beside others: it is all of them");
        }
        texts
    };
    let lower = |texts: Vec<Arc<str>>| texts.iter().map(|text| text.to_ascii_lowercase().into()).collect();
    let origins = list("allowOrigins", CORS_MAX, &is_origin, "origin such as `https://example.com`, nor `*`");
    let methods = list("allowMethods", CORS_METHODS.len() - 1, &|text| CORS_METHODS.contains(&text), "method, nor `*`");
    let allowed = list("allowHeaders", CORS_MAX, &fields::is_token, "name of a header field, nor `*`");
    let exposed = list("exposeHeaders", CORS_MAX, &fields::is_token, "name of a header field, nor `*`");
    let max_age =
        place.number("maxAge", 1..=i64::from(i32::MAX), problems).map_or(Duration::from_secs(5), Duration::from_secs);
    Cors {
        allow_origins: lower(origins),
        allow_methods: methods.into(),
        allow_headers: lower(allowed),
        expose_headers: exposed.into(),
        allow_credentials: place.field("allowCredentials", problems).unwrap_or(false),
        max_age,
    }
}

/// `<scheme>://<host>`, with a port or not; `*` for the first labels of the host, for all of it, or for everything.
fn is_origin(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return true;
    }
    let rest = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"));
    let Some(rest) = rest.filter(|_| text.len() <= ORIGIN_BYTES_MAX) else { return false };
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    port.is_none_or(is_port) && (host == "*" || meta::is_dns_subdomain(host.strip_prefix("*.").unwrap_or(host)))
}

/// Whether a filter puts another prefix in place of the one that matched.
pub(super) fn replaces_prefix(filters: &Filters) -> bool {
    let of_redirect = filters.redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
    let of_rewrite = filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    [of_redirect, of_rewrite].into_iter().flatten().any(|path| matches!(path, PathRewrite::Prefix(_)))
}
