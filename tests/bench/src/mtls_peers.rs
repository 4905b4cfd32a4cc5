//! The pair of Envoys that Heddle's encrypted pair is compared with: HTTP/1.1 from the application, HTTP/2 in mutual TLS 1.3 between the
//! two, HTTP/1.1 to the origin; byte streams by HBONE's CONNECT. Both check the other's SPIFFE id.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use heddle_testkit::pki::Credential;
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use serde_json::{Value, json};

use crate::contestants::wait_for_ports;
use crate::origin::{ECHO_PORT, SINK_PORT};
use crate::peers::{ENVOY_OFFSET, H1_PORT, OPAQUE_PORT};

/// Where the server's Envoy takes requests in mutual TLS.
pub const TLS_PORT: u16 = 9443;
/// Where the server's Envoy resumes sessions.
pub const RESUMING_PORT: u16 = 15010;
/// Where it takes HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Ports whose connections are carried as bytes.
const STREAM_PORTS: [u16; 3] = [ECHO_PORT, SINK_PORT, OPAQUE_PORT];
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Whose Envoy it is, and whom it expects.
pub struct Party<'a> {
    pub credential: &'a Credential,
    pub peer_id: &'a str,
}

/// The client's Envoy: its ports lead to those of the Envoy at `server`.
pub fn start_client(
    place: &Place,
    binary: &Path,
    directory: &Path,
    party: &Party<'_>,
    server: IpAddr,
) -> Result<Process> {
    let mut listeners = vec![listener(H1_PORT + ENVOY_OFFSET, requests("HTTP1", "requests"), None)];
    let mut clusters = vec![secured("requests", server, TLS_PORT, party)];
    for port in STREAM_PORTS {
        let filter = json!({
            "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": format!("s{port}"),
            "cluster": "hbone",
            "tunneling_config": {"hostname": format!("{server}:{port}")},
        });
        listeners.push(listener(port + ENVOY_OFFSET, filter, None));
    }
    clusters.push(secured("hbone", server, HBONE_PORT, party));
    let ports: Vec<u16> = STREAM_PORTS.iter().chain(&[H1_PORT]).map(|port| port + ENVOY_OFFSET).collect();
    start(place, binary, directory, &listeners, &clusters, &ports)
}

/// The server's Envoy, before the origin of its own pod.
pub fn start_server(place: &Place, binary: &Path, directory: &Path, party: &Party<'_>) -> Result<Process> {
    let tls = |resumes: bool| {
        json!({
            "name": "tls",
            "typed_config": {
                "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                // Full handshakes are compared with full ones, but on one port.
                "disable_stateless_session_resumption": !resumes,
                "common_tls_context": tls_context(party),
            },
        })
    };
    let mut tunnels = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": router(),
    });
    let (mut hosts, mut clusters) = (Vec::new(), vec![plain(H1_PORT, place.v4())]);
    for port in STREAM_PORTS {
        let route = json!({
            "cluster": format!("c{port}"),
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        });
        hosts.push(json!({
            "name": format!("h{port}"),
            "domains": [format!("{}:{port}", place.v4())],
            "routes": [{"match": {"connect_matcher": {}}, "route": route}],
        }));
        clusters.push(plain(port, place.v4()));
    }
    tunnels["route_config"] = json!({"name": "tunnels", "virtual_hosts": hosts});
    let listeners = [
        listener(TLS_PORT, requests("HTTP2", &format!("c{H1_PORT}")), Some(&tls(false))),
        listener(RESUMING_PORT, requests("HTTP2", &format!("c{H1_PORT}")), Some(&tls(true))),
        listener(HBONE_PORT, tunnels, Some(&tls(false))),
    ];
    start(place, binary, directory, &listeners, &clusters, &[TLS_PORT, RESUMING_PORT, HBONE_PORT])
}

fn start(
    place: &Place,
    binary: &Path,
    directory: &Path,
    listeners: &[Value],
    clusters: &[Value],
    ports: &[u16],
) -> Result<Process> {
    let path = directory.join(format!("envoy-mtls-{}.yaml", place.name()));
    let text = json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string();
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(binary);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]).arg(&path);
    let envoy = place.spawn("envoy", command)?;
    wait_for_ports(place, &envoy, ports)?;
    Ok(envoy)
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn listener(port: u16, filter: Value, tls: Option<&Value>) -> Value {
    let mut chain = json!({"filters": [{"name": "only", "typed_config": filter}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls.clone();
    }
    json!({"address": address("0.0.0.0", port), "filter_chains": [chain]})
}

fn router() -> Value {
    json!([{"name": "router", "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")}}])
}

/// The table of routes and the retry policy of the plain pair.
fn requests(codec: &str, cluster: &str) -> Value {
    let route = json!({"cluster": cluster, "timeout": "15s"});
    json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "requests",
        "codec_type": codec,
        "http_filters": router(),
        "route_config": {"name": "requests", "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,reset", "num_retries": 2},
            "routes": [
                {"match": {"prefix": "/cart/"}, "route": route},
                {"match": {"path": "/health", "headers": [{"name": "x-probe", "present_match": true}]}, "route": route},
                {"match": {"prefix": "/"}, "route": route},
            ],
        }]},
    })
}

fn cluster(name: &str, ip: IpAddr, port: u16) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000},
        ]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(&ip.to_string(), port)}}]}],
        },
    })
}

fn plain(port: u16, ip: IpAddr) -> Value {
    cluster(&format!("c{port}"), ip, port)
}

fn secured(name: &str, ip: IpAddr, port: u16, party: &Party<'_>) -> Value {
    let mut secured = cluster(name, ip, port);
    secured["transport_socket"] = json!({
        "name": "tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "common_tls_context": tls_context(party),
        },
    });
    secured["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http2_protocol_options": {"allow_connect": true, "max_concurrent_streams": 100}},
        },
    });
    secured
}

fn tls_context(party: &Party<'_>) -> Value {
    let file = |path: &Path| json!({"filename": path.display().to_string()});
    let Credential { chain, key, root } = party.credential;
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file(chain), "private_key": file(key)}],
        "validation_context": {
            "trusted_ca": file(root),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": party.peer_id}}],
        },
    })
}
