//! What is answered to requests from scripts of other origins: the Gateway API's `HTTPCORSFilter`, the Fetch standard's CORS protocol.
//!
//! A preflight is answered by the proxy (204), with [`Cors::preflight`]; every other request goes its way, and its response gets
//! [`Cors::response`] in place of [`Cors::FIELDS`], which the route alone has a say in, whatever its Service sends (GEP-1767: the route is the
//! final authority). An origin that is not allowed gets none of them, and its browser keeps the response from the script.

use super::Cors;

/// The value of `Access-Control-Allow-Origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowOrigin {
    /// `*`: the response is the same for every origin.
    Any,
    /// The origin of the request: the response needs `Vary: Origin`.
    Echo,
}

/// Names in lower case and values of response fields; those of one name stand in place of what the Service sent.
pub type Fields = Vec<(&'static str, String)>;

impl Cors {
    /// Fields of a response that a Service has no say in where a route has the filter: they are taken off before [`Cors::response`] is added.
    pub const FIELDS: [&'static str; 6] = [
        "access-control-allow-origin",
        "access-control-allow-credentials",
        "access-control-expose-headers",
        "access-control-allow-methods",
        "access-control-allow-headers",
        "access-control-max-age",
    ];

    /// Whether this is a preflight: `OPTIONS` with both fields. Any other `OPTIONS` is the Service's.
    #[must_use]
    pub fn is_preflight(method: &str, origin: Option<&str>, request_method: Option<&str>) -> bool {
        method == "OPTIONS" && origin.is_some() && request_method.is_some()
    }

    /// Whether scripts of an origin may read responses, and how that is said. With credentials `*` must not be, so the origin is named.
    #[must_use]
    pub fn allows(&self, origin: &str) -> Option<AllowOrigin> {
        if self.allow_origins.iter().any(|allowed| &**allowed == "*") {
            return Some(if self.allow_credentials { AllowOrigin::Echo } else { AllowOrigin::Any });
        }
        let lower = origin.to_ascii_lowercase();
        self.allow_origins.iter().any(|allowed| covers(allowed, &lower)).then_some(AllowOrigin::Echo)
    }

    /// The fields of the answer to a preflight; `request_method` and `request_headers` are its `Access-Control-Request-Method` and `-Headers`.
    #[must_use]
    pub fn preflight(&self, origin: &str, request_method: Option<&str>, request_headers: Option<&str>) -> Fields {
        let Some(allow) = self.allows(origin) else { return self.vary() };
        let mut fields = self.allow(allow, origin);
        let methods = self.list(&self.allow_methods, request_method);
        let headers = self.list(&self.allow_headers, request_headers);
        fields.extend(methods.map(|list| ("access-control-allow-methods", list)));
        fields.extend(headers.map(|list| ("access-control-allow-headers", list)));
        fields.push(("access-control-max-age", self.max_age.as_secs().to_string()));
        fields
    }

    /// The fields of the response to a request that is no preflight; none of one without `Origin`, but `Vary` where another origin would see
    /// another response.
    #[must_use]
    pub fn response(&self, origin: Option<&str>) -> Fields {
        let Some((origin, allow)) = origin.and_then(|origin| Some((origin, self.allows(origin)?))) else {
            return self.vary();
        };
        let mut fields = self.allow(allow, origin);
        // With credentials `*` would be the name of a field.
        let exposed = self.expose_headers.iter().filter(|name| !self.allow_credentials || ***name != *"*");
        let exposed: Vec<&str> = exposed.map(|name| &**name).collect();
        if !exposed.is_empty() {
            fields.push(("access-control-expose-headers", exposed.join(",")));
        }
        fields
    }

    fn allow(&self, allow: AllowOrigin, origin: &str) -> Fields {
        let value = match allow {
            AllowOrigin::Any => "*",
            AllowOrigin::Echo => origin,
        };
        let mut fields = vec![("access-control-allow-origin", value.to_owned())];
        if self.allow_credentials {
            fields.push(("access-control-allow-credentials", "true".to_owned()));
        }
        fields.extend(self.vary());
        fields
    }

    fn vary(&self) -> Fields {
        let is_one_for_all = !self.allow_credentials && self.allow_origins.iter().any(|origin| &**origin == "*");
        if is_one_for_all { Vec::new() } else { vec![("vary", "origin".to_owned())] }
    }

    /// What is configured; of `*` with credentials what was asked for, and nothing if nothing was.
    fn list(&self, configured: &[std::sync::Arc<str>], asked: Option<&str>) -> Option<String> {
        if self.allow_credentials && configured.iter().any(|name| &**name == "*") {
            return asked.map(str::to_owned);
        }
        (!configured.is_empty()).then(|| configured.join(","))
    }
}

/// Whether an origin, in lower case, is meant. A wildcard stands for one or more characters of the host, dots among them; a port that is the
/// scheme's own may be written or not.
fn covers(allowed: &str, origin: &str) -> bool {
    let (Some((scheme, host, port)), Some((of, name, at))) = (parts(allowed), parts(origin)) else { return false };
    scheme == of
        && port == at
        && match host.split_once('*') {
            None => host == name,
            Some((before, behind)) => {
                name.len() > before.len() + behind.len() && name.starts_with(before) && name.ends_with(behind)
            }
        }
}

/// Scheme, host and port.
fn parts(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let own = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Some((scheme, host, port.parse().ok()?)),
        _ => Some((scheme, rest, own)),
    }
}

#[cfg(test)]
#[path = "cors_tests.rs"]
mod tests;
