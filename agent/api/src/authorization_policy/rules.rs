//! `spec.rules` of an AuthorizationPolicy: every text checked, every pattern compiled, every list bounded.

use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::policy::PATTERN_BYTES_MAX;
use heddle_model::policy::{
    HeaderMatch, HostMatch, IdentityMatch, Operation, PathMatch, PathTemplate, Pattern, PatternError, Rule, Source,
    TextMatch,
};
use ipnet::IpNet;

use crate::meta;
use crate::node::shortened;
use crate::problem::Problems;

/// Most entries of `spec.rules`.
pub const RULES_MAX: usize = 64;
/// Most entries of `from` in one rule.
pub const SOURCES_MAX: usize = 64;
/// Most entries of `to` in one rule.
pub const OPERATIONS_MAX: usize = 64;
/// Most entries of any list in `from` and `to`.
pub const LISTED_MAX: usize = 256;
/// Most entries of all these lists of a policy together.
pub const VALUES_MAX: usize = 4096;
/// Most regular expressions in a policy.
pub const REGEXES_MAX: usize = 64;
/// Longest identity (SPIFFE ID §2.3), method and value of a header, in bytes.
const IDENTITY_BYTES_MAX: usize = 2048;
const SERVICE_ACCOUNT_BYTES_MAX: usize = meta::LABEL_BYTES_MAX + 1 + meta::SUBDOMAIN_BYTES_MAX;
const METHOD_BYTES_MAX: usize = 64;
const HEADER_NAME_BYTES_MAX: usize = 256;
const HEADER_VALUE_BYTES_MAX: usize = 1024;

/// An item of `spec.rules`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleFields {
    /// Who: one of these; everybody without it.
    #[schemars(length(min = 1, max = SOURCES_MAX))]
    pub from: Option<Vec<SourceFields>>,
    /// What: one of these; everything without it.
    #[schemars(length(min = 1, max = OPERATIONS_MAX))]
    pub to: Option<Vec<OperationFields>>,
}

/// An item of `from`: everything in it has to hold.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SourceFields {
    /// SPIFFE ids; with `*` at the end all that begin so.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = IDENTITY_BYTES_MAX)))]
    pub identities: Option<Vec<String>>,
    /// Ids, as in `identities`, of which none may be the caller's.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = IDENTITY_BYTES_MAX)))]
    pub not_identities: Option<Vec<String>>,
    /// Namespaces of the caller's identity.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = meta::LABEL_BYTES_MAX)))]
    pub namespaces: Option<Vec<String>>,
    /// Namespaces that may not be the caller's.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = meta::LABEL_BYTES_MAX)))]
    pub not_namespaces: Option<Vec<String>>,
    /// `account`, of the policy's namespace, or `namespace/account`.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = SERVICE_ACCOUNT_BYTES_MAX)))]
    pub service_accounts: Option<Vec<String>>,
    /// Accounts, as in `serviceAccounts`, of which none may be the caller's.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = SERVICE_ACCOUNT_BYTES_MAX)))]
    pub not_service_accounts: Option<Vec<String>>,
    /// Networks of the true client's address, or single addresses.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1)))]
    pub cidrs: Option<Vec<String>>,
    /// Networks the client may not be in.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1)))]
    pub not_cidrs: Option<Vec<String>>,
}

/// An item of `to`: everything in it has to hold.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OperationFields {
    /// Target ports.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(range(min = 1, max = u16::MAX)))]
    pub ports: Option<Vec<i64>>,
    /// Target ports that are not meant.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(range(min = 1, max = u16::MAX)))]
    pub not_ports: Option<Vec<i64>>,
    /// Names or addresses, without port; `*.` in front of a name stands for one label or more.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1)))]
    pub hosts: Option<Vec<String>>,
    /// Hosts that are not meant.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1)))]
    pub not_hosts: Option<Vec<String>>,
    /// Methods, in upper case.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = METHOD_BYTES_MAX)))]
    pub methods: Option<Vec<String>>,
    /// Methods that are not meant.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    #[schemars(inner(length(min = 1, max = METHOD_BYTES_MAX)))]
    pub not_methods: Option<Vec<String>>,
    /// Paths, without query.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    pub paths: Option<Vec<PathFields>>,
    /// Paths that are not meant.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    pub not_paths: Option<Vec<PathFields>>,
    /// Header fields, all of which have to match.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    pub headers: Option<Vec<HeaderFields>>,
    /// Header fields, none of which may match.
    #[schemars(length(min = 1, max = LISTED_MAX))]
    pub not_headers: Option<Vec<HeaderFields>>,
}

/// An item of `paths`: exactly one field.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
#[serde(deny_unknown_fields, default)]
pub struct PathFields {
    /// This path.
    #[schemars(length(min = 1, max = PATTERN_BYTES_MAX))]
    pub exact: Option<String>,
    /// This path and what is below it, by whole segments.
    #[schemars(length(min = 1, max = PATTERN_BYTES_MAX))]
    pub prefix: Option<String>,
    /// `/users/{id}`: `{name}` and `{*}` are one segment, `{**}` any number.
    #[schemars(length(min = 1, max = PATTERN_BYTES_MAX))]
    pub template: Option<String>,
    /// A regular expression over the whole path.
    #[schemars(length(max = PATTERN_BYTES_MAX))]
    pub regex: Option<String>,
}

/// An item of `headers`: `name`, and exactly one of the others.
#[derive(Debug, PartialEq, Eq, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("minProperties" = 2, "maxProperties" = 2))]
#[serde(deny_unknown_fields)]
pub struct HeaderFields {
    /// Name, in any case.
    #[schemars(length(min = 1, max = HEADER_NAME_BYTES_MAX))]
    pub name: String,
    /// This value.
    #[serde(default)]
    #[schemars(length(max = HEADER_VALUE_BYTES_MAX))]
    pub exact: Option<String>,
    /// Values that begin so.
    #[serde(default)]
    #[schemars(length(min = 1, max = HEADER_VALUE_BYTES_MAX))]
    pub prefix: Option<String>,
    /// A regular expression over the whole value.
    #[serde(default)]
    #[schemars(length(max = PATTERN_BYTES_MAX))]
    pub regex: Option<String>,
    /// `true`: any value.
    #[serde(default)]
    #[schemars(extend("enum" = [true]))]
    pub present: Option<bool>,
}

/// The rules of a policy in `namespace`; what is wrong with them is told.
pub(super) fn convert(namespace: &str, rules: &[RuleFields], problems: &mut Problems) -> Vec<Rule> {
    let mut reader = Reader { namespace, problems, values: 0, regexes: 0 };
    reader.bounded("spec.rules", rules.len(), RULES_MAX);
    let numbered = rules.iter().take(RULES_MAX).enumerate();
    let rules = numbered.map(|(index, rule)| reader.rule(&format!("spec.rules[{index}]"), rule)).collect();
    let Reader { values, regexes, .. } = reader;
    for (count, max, what) in
        [(values, VALUES_MAX, "entries in all lists"), (regexes, REGEXES_MAX, "regular expressions")]
    {
        if count > max {
            problems.error("spec.rules", format!("{count} {what} together: at most {max}"));
        }
    }
    rules
}

struct Reader<'a> {
    namespace: &'a str,
    problems: &'a mut Problems,
    values: usize,
    regexes: usize,
}

impl Reader<'_> {
    fn rule(&mut self, path: &str, rule: &RuleFields) -> Rule {
        let (from, to) = (format!("{path}.from"), format!("{path}.to"));
        let everybody = "matches everybody: leave `from` out, or say who";
        let everything = "matches everything: leave `to` out, or say what";
        Rule {
            from: self.items(&from, rule.from.as_deref(), SOURCES_MAX, everybody, Self::source),
            to: self.items(&to, rule.to.as_deref(), OPERATIONS_MAX, everything, Self::operation),
        }
    }

    /// `from` or `to`. Neither the list nor an item may be empty: only a whole rule may match everything.
    fn items<F: Default + PartialEq, T>(
        &mut self,
        path: &str,
        items: Option<&[F]>,
        max: usize,
        empty: &str,
        convert: impl Fn(&mut Self, &str, &F) -> T,
    ) -> Vec<T> {
        let Some(items) = items else { return Vec::new() };
        if items.is_empty() {
            self.problems.error(path, format!("is empty, and so it {empty}"));
        }
        self.bounded(path, items.len(), max);
        let mut converted = Vec::new();
        for (index, item) in items.iter().enumerate().take(max) {
            let path = format!("{path}[{index}]");
            if *item == F::default() {
                self.problems.error(path.as_str(), format!("is empty, and so it {empty}"));
            }
            converted.push(convert(self, &path, item));
        }
        converted
    }

    fn source(&mut self, path: &str, source: &SourceFields) -> Source {
        let namespace = self.namespace;
        let account = |text: &str| service_account(namespace, text);
        let at = |field: &str| format!("{path}.{field}");
        Source {
            identities: self.texts(at("identities"), &source.identities, identity),
            not_identities: self.texts(at("notIdentities"), &source.not_identities, identity),
            namespaces: self.texts(at("namespaces"), &source.namespaces, namespace_name),
            not_namespaces: self.texts(at("notNamespaces"), &source.not_namespaces, namespace_name),
            service_accounts: self.texts(at("serviceAccounts"), &source.service_accounts, account),
            not_service_accounts: self.texts(at("notServiceAccounts"), &source.not_service_accounts, account),
            cidrs: self.texts(at("cidrs"), &source.cidrs, cidr),
            not_cidrs: self.texts(at("notCidrs"), &source.not_cidrs, cidr),
        }
    }

    fn operation(&mut self, path: &str, operation: &OperationFields) -> Operation {
        let at = |field: &str| format!("{path}.{field}");
        let paths = [&operation.paths, &operation.not_paths];
        let headers = [&operation.headers, &operation.not_headers];
        self.regexes += paths.into_iter().flatten().flatten().filter(|path| path.regex.is_some()).count();
        self.regexes += headers.into_iter().flatten().flatten().filter(|header| header.regex.is_some()).count();
        Operation {
            ports: self.list(at("ports"), &operation.ports, |number| port(*number)),
            not_ports: self.list(at("notPorts"), &operation.not_ports, |number| port(*number)),
            hosts: self.texts(at("hosts"), &operation.hosts, host),
            not_hosts: self.texts(at("notHosts"), &operation.not_hosts, host),
            methods: self.texts(at("methods"), &operation.methods, method),
            not_methods: self.texts(at("notMethods"), &operation.not_methods, method),
            paths: self.list(at("paths"), &operation.paths, path_match),
            not_paths: self.list(at("notPaths"), &operation.not_paths, path_match),
            headers: self.list(at("headers"), &operation.headers, header),
            not_headers: self.list(at("notHeaders"), &operation.not_headers, header),
        }
    }

    fn texts<T>(
        &mut self,
        path: String,
        items: &Option<Vec<String>>,
        convert: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.list(path, items, |text| convert(text))
    }

    /// One list of a source or an operation.
    fn list<F, T>(
        &mut self,
        path: String,
        items: &Option<Vec<F>>,
        convert: impl Fn(&F) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(items) = items else { return Vec::new() };
        if items.is_empty() {
            let message = "is empty, and would not restrict anything: leave it out, or name something";
            self.problems.error(path.as_str(), message);
        }
        self.bounded(&path, items.len(), LISTED_MAX);
        let mut converted = Vec::new();
        for (index, item) in items.iter().enumerate().take(LISTED_MAX) {
            self.values += 1;
            // Beyond the limits nothing more is compiled; that there is more is told.
            if self.values > VALUES_MAX || self.regexes > REGEXES_MAX {
                continue;
            }
            match convert(item) {
                Ok(value) => converted.push(value),
                Err(message) => self.problems.error(format!("{path}[{index}]"), message),
            }
        }
        converted
    }

    fn bounded(&mut self, path: &str, count: usize, max: usize) {
        if count > max {
            self.problems.error(path, format!("{count} entries: at most {max}"));
        }
    }
}

/// SPIFFE ID §2: what could be no id's beginning would never match.
fn identity(text: &str) -> Result<IdentityMatch, String> {
    let told = shortened(text);
    let (id, is_prefix) = text.strip_suffix('*').map_or((text, false), |id| (id, true));
    let Some(rest) = id.strip_prefix("spiffe://") else {
        return Err(format!(
            "`{told}` does not begin with `spiffe://`: an id such as `spiffe://cluster.local/ns/shop/sa/web`, or the \
             beginning of some and `*`, up to `spiffe://*` for all who have one"
        ));
    };
    let (domain, path) = rest.split_once('/').map_or((rest, None), |(domain, path)| (domain, Some(path)));
    let of_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    let of_path = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
    // The last segment of a prefix may be anything's beginning.
    let whole = if is_prefix { path.and_then(|path| path.rsplit_once('/')).map(|(whole, _)| whole) } else { path };
    let is_right = domain.bytes().all(of_domain)
        && (is_prefix && path.is_none() || !domain.is_empty())
        && (is_prefix || path.is_some())
        && path.is_none_or(|path| path.bytes().all(of_path))
        && whole.is_none_or(|path| path.split('/').all(|segment| !matches!(segment, "" | "." | "..")));
    match is_right {
        _ if text.len() > IDENTITY_BYTES_MAX => Err(format!("longer than {IDENTITY_BYTES_MAX} bytes")),
        false if id.contains('*') => {
            Err(format!("`{told}` has a `*` that is not its end: only there it stands for anything"))
        }
        false => Err(format!(
            "`{told}` is no SPIFFE id: `spiffe://<trust domain>/<path>`, as `spiffe://cluster.local/ns/shop/sa/web`"
        )),
        true if is_prefix => Ok(IdentityMatch::Prefix(id.into())),
        true => Ok(IdentityMatch::Exact(id.into())),
    }
}

fn namespace_name(text: &str) -> Result<Arc<str>, String> {
    let found = meta::is_dns_label(text).then(|| text.into());
    found.ok_or_else(|| format!("`{}` is no name of a namespace", shortened(text)))
}

fn service_account(namespace: &str, text: &str) -> Result<(Arc<str>, Arc<str>), String> {
    let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
    if meta::is_dns_label(namespace) && meta::is_dns_subdomain(account) {
        return Ok((namespace.into(), account.into()));
    }
    Err(format!("`{}` is no ServiceAccount: `name` in the policy's namespace, or `namespace/name`", shortened(text)))
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net: IpNet =
        net.map_err(|_| format!("`{}` is no network such as `10.0.0.0/8`, nor an address", shortened(text)))?;
    match meta::canonical(net) {
        right if right == net => Ok(net),
        right => Err(format!("`{net}` is not the network's own address: write `{right}`")),
    }
}

fn port(number: i64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port @ (15_001 | 15_006 | 15_008)) => {
            Err(format!("{port} is a port of the agent, which no application has"))
        }
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is no port: 1 to 65535")),
    }
}

fn host(text: &str) -> Result<HostMatch, String> {
    HostMatch::new(text).map_err(|error| match text.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("`{}` is {error}: leave the port out, it is in `ports`", shortened(text))
        }
        _ => format!("`{}` is {error}", shortened(text)),
    })
}

fn method(text: &str) -> Result<Box<str>, String> {
    let upper = text.to_ascii_uppercase();
    let is_method = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    if upper.is_empty() || upper.len() > METHOD_BYTES_MAX || !upper.bytes().all(is_method) {
        return Err(format!("`{}` is no method such as `GET`", shortened(text)));
    }
    if upper != text {
        return Err(format!("`{text}` never matches, as case matters in methods: write `{upper}`"));
    }
    Ok(upper.into())
}

fn path_match(fields: &PathFields) -> Result<PathMatch, String> {
    let PathFields { exact, prefix, template, regex } = fields;
    let told = |text: &str, error: PatternError| format!("`{}`: {error}", shortened(text));
    match (exact, prefix, template, regex) {
        (Some(text), None, None, None) => PathMatch::exact(text).map_err(|error| told(text, error)),
        (None, Some(text), None, None) => PathMatch::prefix(text).map_err(|error| told(text, error)),
        (None, None, Some(text), None) => {
            PathTemplate::new(text).map(PathMatch::Template).map_err(|error| told(text, error))
        }
        (None, None, None, Some(text)) => Pattern::new(text).map(PathMatch::Regex).map_err(|error| told(text, error)),
        _ => Err("exactly one of `exact`, `prefix`, `template`, `regex` is needed".to_owned()),
    }
}

fn header(fields: &HeaderFields) -> Result<HeaderMatch, String> {
    let HeaderFields { name, exact, prefix, regex, present } = fields;
    let name = header_name(name)?;
    let value = match (exact, prefix, regex, present) {
        (Some(text), None, None, None) if text.trim_matches([' ', '\t']) != text => {
            return Err(format!("`{}` never matches: values have no blanks at their ends", shortened(text)));
        }
        (Some(text), None, None, None) => TextMatch::Exact(header_value(text)?),
        (None, Some(text), None, None) if text.is_empty() => {
            return Err("`prefix` is empty: write `present: true` for any value".to_owned());
        }
        (None, Some(text), None, None) if text.starts_with([' ', '\t']) => {
            return Err(format!("`{}` never matches: values do not begin with blanks", shortened(text)));
        }
        (None, Some(text), None, None) => TextMatch::Prefix(header_value(text)?),
        (None, None, Some(text), None) => {
            Pattern::new(text).map(TextMatch::Regex).map_err(|error| format!("`{}`: {error}", shortened(text)))?
        }
        (None, None, None, Some(true)) => TextMatch::Present,
        (None, None, None, Some(false)) => {
            return Err("`present: false` is not known: put the field under `notHeaders`".to_owned());
        }
        _ => return Err("exactly one of `exact`, `prefix`, `regex`, `present` is needed".to_owned()),
    };
    Ok(HeaderMatch { name, value })
}

/// RFC 9110 §5.1, in lower case.
fn header_name(text: &str) -> Result<Box<str>, String> {
    let name = text.to_ascii_lowercase();
    let instead = match name.as_str() {
        "host" | ":authority" => Some("`hosts`"),
        ":method" => Some("`methods`"),
        ":path" => Some("`paths`"),
        _ => None,
    };
    if let Some(instead) = instead {
        return Err(format!("`{}` is matched by {instead}", shortened(text)));
    }
    if name.starts_with("x-heddle-") {
        return Err(format!(
            "`{}` is set by agents and taken from no application: no policy can ask for it",
            shortened(text)
        ));
    }
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > HEADER_NAME_BYTES_MAX || !name.bytes().all(is_token) {
        return Err(format!("`{}` is no name of a header field", shortened(text)));
    }
    Ok(name.into())
}

fn header_value(text: &str) -> Result<Box<str>, String> {
    if text.len() > HEADER_VALUE_BYTES_MAX {
        return Err(format!("longer than {HEADER_VALUE_BYTES_MAX} bytes"));
    }
    if text.chars().any(|c| c.is_ascii_control() && c != '\t') {
        return Err(format!("`{}` never matches: values have no control characters", shortened(text).escape_debug()));
    }
    Ok(text.into())
}
