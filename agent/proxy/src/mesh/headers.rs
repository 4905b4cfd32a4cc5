//! What one agent tells another about a stream. Only between agents that proved who they are: from applications and from outside
//! every `x-heddle-*` field is stripped (DESIGN §10).

use std::net::SocketAddr;

use heddle_http::answer;
use heddle_http::detect::HttpVersion;
use heddle_model::{MeshConfig, Workload};
use heddle_telemetry::Reason;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Address and port of the true client, `10.1.2.3:40000`. Its address is the connection's own or nothing: a peer speaks for itself.
const CLIENT: HeaderName = HeaderName::from_static("x-heddle-client");
/// `1` where the client speaks HTTP/1: its server is called so too, unless its port declares otherwise.
const VERSION: HeaderName = HeaderName::from_static("x-heddle-version");
/// Marks a CONNECT that is the application's own; without it one is the stream of bytes of a connection.
const CONNECT: HeaderName = HeaderName::from_static("x-heddle-connect");
/// Marks a copy of a request, whose answer nobody waits for.
pub(crate) const SHADOW: HeaderName = HeaderName::from_static("x-heddle-shadow");
/// Which attempt of a request this is; the first is not told.
const ATTEMPT: HeaderName = HeaderName::from_static("x-heddle-attempt");
/// RFC 7239; HBONE's word for the true client.
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// What is said about a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The true client; none if it was not told, or the peer may not say it.
    pub(crate) client: Option<SocketAddr>,
    pub(crate) version: HttpVersion,
    /// A CONNECT that the application sent.
    pub(crate) is_own_connect: bool,
}

/// Tells the server of `heddle/h2` about a request of an application.
pub(crate) fn tell(fields: &mut HeaderMap, client: Option<HeaderValue>, version: HttpVersion, is_connect: bool) {
    if let Some(client) = client {
        fields.insert(CLIENT, client);
    }
    if version == HttpVersion::Http1 {
        fields.insert(VERSION, HeaderValue::from_static("1"));
    }
    if is_connect {
        fields.insert(CONNECT, HeaderValue::from_static("application"));
    }
}

/// What the application hears of as well, as its proved peer's agent says so. Only of a stream of that agent's own: what a stream carries, an
/// application wrote.
pub(crate) fn for_application(fields: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let told = |name: HeaderName| fields.get(&name).cloned().map(|value| (name, value));
    [ATTEMPT, SHADOW].into_iter().filter_map(told).collect()
}

/// Tells the server of `heddle/h2` that it is asked again.
pub(crate) fn tell_attempt(fields: &mut HeaderMap, number: u32) {
    if number > 1 {
        fields.insert(ATTEMPT, HeaderValue::from(number));
    }
}

/// Tells the server of `heddle/h2` whose bytes a stream carries.
pub(crate) fn tell_bytes(fields: &mut HeaderMap, client: SocketAddr) {
    if let Some(client) = of_client(client) {
        fields.insert(CLIENT, client);
    }
}

/// A client as it is told: made once for all its requests. It is kept out of the table of header fields, where one client's would displace
/// another's.
pub(crate) fn of_client(client: SocketAddr) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(client.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The same for HBONE, and who calls, as ztunnel tells it to telemetry: nobody is authenticated by that. There is no trace of mere bytes to
/// go on with, so each stream begins one, not sampled.
pub(crate) fn tell_hbone(fields: &mut HeaderMap, client: SocketAddr, source: Option<&Workload>, mesh: &MeshConfig) {
    let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
    let baggage = source.map(|source| {
        let Workload { namespace, workload_name, app, version, .. } = source;
        let service = if app.is_empty() { workload_name } else { app };
        let cluster = &mesh.cluster_name;
        format!(
            "k8s.cluster.name={cluster},k8s.namespace.name={namespace},k8s.deployment.name={workload_name},\
             service.name={service},service.version={version}"
        )
    });
    let trace = format!("00-{trace:032x}-{span:016x}-00");
    for (name, text) in [("baggage", baggage), ("traceparent", Some(trace))] {
        if let Some(Ok(value)) = text.map(HeaderValue::try_from) {
            fields.insert(HeaderName::from_static(name), value);
        }
    }
    if let Ok(value) = HeaderValue::try_from(format!("for=\"{client}\"")) {
        fields.insert(FORWARDED, value);
    }
}

/// Why the server's agent answered for its application, if it did.
pub(crate) fn reason(fields: &HeaderMap) -> Option<Reason> {
    let word = fields.get(answer::REASON_HEADER)?.to_str().ok()?;
    Reason::from_word(word).filter(|reason| !reason.is_success())
}

/// Reads what an agent says of a stream; `peer` is the address of its connection.
pub(crate) fn read(fields: &HeaderMap, peer: SocketAddr) -> Told {
    let client = fields.get(CLIENT).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    Told {
        client: client.filter(|client| is_own(*client, peer)),
        version: if fields.get(VERSION).is_some_and(|v| v == "1") { HttpVersion::Http1 } else { HttpVersion::Http2 },
        is_own_connect: fields.contains_key(CONNECT),
    }
}

/// The true client of an HBONE stream, from `Forwarded: for="10.1.2.3:40000"`.
pub(crate) fn read_forwarded(fields: &HeaderMap, peer: SocketAddr) -> Option<SocketAddr> {
    let value = fields.get(FORWARDED)?.to_str().ok()?;
    let pair = value.split([';', ',']).map(str::trim).find(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        name.eq_ignore_ascii_case("for")
    })?;
    let (_, address) = pair.split_once('=')?;
    let client = address.trim_matches('"').parse().ok()?;
    is_own(client, peer).then_some(client)
}

/// A pod's agent connects from the pod's address, so nobody speaks for another pod.
fn is_own(client: SocketAddr, peer: SocketAddr) -> bool {
    client.port() != 0 && client.ip().to_canonical() == peer.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_is_told_is_read() {
        let client = "10.0.0.1:40000".parse().unwrap();
        for (version, connect) in [(HttpVersion::Http1, false), (HttpVersion::Http2, true), (HttpVersion::Http2, false)]
        {
            let mut fields = HeaderMap::new();
            tell(&mut fields, of_client(client), version, connect);
            let told = read(&fields, "10.0.0.1:999".parse().unwrap());
            assert_eq!(told, Told { client: Some(client), version, is_own_connect: connect });
        }
    }

    #[test]
    fn hbone_is_told_who_calls_and_a_trace_of_its_own() {
        let mut source = Workload::new("u", "shop", "web-7f9-x");
        (source.workload_name, source.version) = ("web".into(), "2".into());
        let told = |source| {
            let mut fields = HeaderMap::new();
            tell_hbone(&mut fields, "10.0.0.1:7".parse().unwrap(), source, &MeshConfig::default());
            fields
        };
        let (fields, other) = (told(Some(&source)), told(None));
        assert_eq!(fields["forwarded"], "for=\"10.0.0.1:7\"");
        assert_eq!(
            fields["baggage"],
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=2"
        );
        assert!(!other.contains_key("baggage"));
        let parts: Vec<_> = fields["traceparent"].to_str().unwrap().split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2]);
        assert_ne!(fields["traceparent"], other["traceparent"]);
    }

    #[test]
    fn nobody_speaks_for_another_address() {
        let peer = "10.0.0.1:999".parse().unwrap();
        for (value, client) in [
            ("10.0.0.1:40000", Some("10.0.0.1:40000")),
            ("10.0.0.2:40000", None),
            ("10.0.0.1:0", None),
            ("10.0.0.1", None),
            ("[::1]:80", None),
            ("", None),
            ("unix:/x", None),
        ] {
            let client = client.map(|text: &str| text.parse().unwrap());
            assert_eq!(read(&map(&[("x-heddle-client", value)]), peer).client, client, "{value}");
        }
        for (value, client) in [
            ("for=10.0.0.1:40000", Some("10.0.0.1:40000")),
            ("by=x;For=\"10.0.0.1:40000\";proto=http", Some("10.0.0.1:40000")),
            ("for=\"10.0.0.1:40000\", for=10.0.0.9:1", Some("10.0.0.1:40000")),
            ("for=10.0.0.2:40000", None),
            ("for=unknown", None),
            ("for", None),
            ("", None),
        ] {
            let client = client.map(|text: &str| text.parse().unwrap());
            assert_eq!(read_forwarded(&map(&[("forwarded", value)]), peer), client, "{value}");
        }
        assert_eq!(read_forwarded(&map(&[("forwarded", "for=\"[::ffff:10.0.0.1]:7\"")]), peer).unwrap().port(), 7);
    }
}
