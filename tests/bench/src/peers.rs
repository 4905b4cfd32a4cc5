//! The programs of other people: the HTTP origin (nginx), and the proxies Heddle is compared with, each with one worker.
//!
//! All are set up to be fast: no access log, connections to the origin kept, no limit a run could reach. Envoy routes by a
//! table with a retry policy and keeps its statistics; nothing else is changed from its defaults.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::program;
use serde_json::json;

use crate::contestants::wait_for_ports;
use crate::origin::{ECHO_PORT, SINK_PORT};

/// The origin's port for HTTP/1.1.
pub const H1_PORT: u16 = 9002;
/// The origin's port for HTTP/2 with prior knowledge.
pub const H2_PORT: u16 = 9003;

/// The origin's port for HTTP/1.1 that a mesh is told to carry as bytes.
pub const OPAQUE_PORT: u16 = 9004;

/// Each proxy listens on the origin's port plus this.
pub const ENVOY_OFFSET: u16 = 100;
/// Envoy with more to do.
pub const ENVOY_ROUTED_OFFSET: u16 = 400;
pub const HAPROXY_OFFSET: u16 = 200;
pub const NGINX_OFFSET: u16 = 300;

/// The origin's answers: from memory, and from a file.
pub const PATH_1_KIB: &str = "/1k";
pub const PATH_64_KIB: &str = "/64k";

/// The ports of a Service, declared as what they carry.
pub fn service_ports() -> serde_json::Value {
    let port = |port: u16, carries: &str| {
        let name = format!("port-{port}");
        json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP", "appProtocol": carries})
    };
    json!([port(H1_PORT, "http"), port(H2_PORT, "kubernetes.io/h2c")])
}

/// Paths that rules before the one that matches ask for.
const OTHER_PATHS: [&str; 9] =
    ["/cart", "/orders", "/users", "/stock", "/search", "/prices", "/images", "/reports", "/admin"];

/// Ten rules for a Service, the last of which matches, and a TrafficPolicy that says something of everything.
pub fn routes(service: &str) -> String {
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  rules:\n"
    );
    for path in OTHER_PATHS.iter().chain(&[PATH_1_KIB]) {
        text.push_str(&format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    \
             backendRefs: [{{name: {service}, port: {H1_PORT}}}]\n"
        ));
    }
    text.push_str(&format!(
        "---\napiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: shop}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: {service}}}]\n  retries: {{}}\n  timeouts: {{request: 15s}}\n  \
         outlierDetection: {{}}\n  circuitBreaker: {{service: {{requests: 100000}}, endpoint: {{requests: 100000}}}}\n"
    ));
    text
}

/// Writes the file the origins serve.
pub fn write_bodies(directory: &Path) -> Result<()> {
    fs::write(directory.join("64k"), vec![b'x'; 64 << 10]).context("cannot write a body")
}

/// The HTTP origin of one pod.
pub fn start_origin(place: &Place, directory: &Path) -> Result<Process> {
    let body = "x".repeat(1 << 10);
    let server = format!(
        "open_file_cache max=16; sendfile off; output_buffers 1 64k;
        server {{
            listen {H1_PORT} backlog=4096;
            listen {OPAQUE_PORT} backlog=4096;
            listen {H2_PORT} http2 backlog=4096;
            root {};
            location = {PATH_1_KIB} {{ return 200 \"{body}\"; }}
        }}",
        directory.display()
    );
    start_nginx_with(&server, "http-origin", place, directory, &[H1_PORT, OPAQUE_PORT, H2_PORT])
}

/// nginx as a proxy. To its upstream it speaks HTTP/1.1, whatever its client speaks: it knows nothing else.
pub fn start_nginx(place: &Place, directory: &Path) -> Result<Process> {
    let (h1, h2) = (H1_PORT + NGINX_OFFSET, H2_PORT + NGINX_OFFSET);
    let server = format!(
        "upstream origin {{ server {}:{H1_PORT}; keepalive 1024; keepalive_requests 1000000000; }}
        server {{
            listen {h1} backlog=4096;
            listen {h2} http2 backlog=4096;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffers 32 8k;
            location / {{ proxy_pass http://origin; }}
        }}",
        place.v4()
    );
    start_nginx_with(&server, "nginx", place, directory, &[h1, h2])
}

fn start_nginx_with(server: &str, what: &str, place: &Place, directory: &Path, ports: &[u16]) -> Result<Process> {
    let prefix = directory.join(format!("{what}-{}", place.name()));
    fs::create_dir_all(prefix.join("logs")).with_context(|| format!("cannot make {}", prefix.display()))?;
    let path = prefix.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; worker_rlimit_nofile 32768; error_log stderr warn; pid nginx.pid;
        events {{ worker_connections 16384; multi_accept on; }}
        http {{
        access_log off; keepalive_requests 1000000000; keepalive_timeout 300s;
        client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
        {server}
        }}\n"
    );
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = program("nginx", "nginx")?;
    command.arg("-p").arg(&prefix).arg("-c").arg(&path);
    let nginx = place.spawn(what, command)?;
    wait_for_ports(place, &nginx, ports)?;
    Ok(nginx)
}

/// An Envoy that leads from its own ports to those of `server`, shifted by `offset`.
pub fn start_envoy(place: &Place, binary: &Path, directory: &Path, server: IpAddr, offset: u16) -> Result<Process> {
    let path = directory.join(format!("envoy-{}.yaml", place.name()));
    fs::write(&path, envoy_configuration(server, offset))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(binary);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]).arg(&path);
    let envoy = place.spawn("envoy", command)?;
    wait_for_ports(place, &envoy, &[ECHO_PORT, SINK_PORT, H1_PORT, H2_PORT].map(|port| port + ENVOY_OFFSET))?;
    Ok(envoy)
}

/// JSON, which is YAML.
fn envoy_configuration(server: IpAddr, offset: u16) -> String {
    let address = |ip: &str, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    let listener = |port: u16, filter: serde_json::Value| {
        json!({
            "address": address("0.0.0.0", port + ENVOY_OFFSET),
            "filter_chains": [{"filters": [{"name": "only", "typed_config": filter}]}],
        })
    };
    let cluster = |port: u16| {
        let endpoint = json!({"endpoint": {"address": address(&server.to_string(), port + offset)}});
        json!({
            "name": format!("c{port}"),
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [
                {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000},
            ]},
            "load_assignment": {
                "cluster_name": format!("c{port}"),
                "endpoints": [{"lb_endpoints": [endpoint]}],
            },
        })
    };
    let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
    for port in [ECHO_PORT, SINK_PORT] {
        let filter = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": format!("s{port}"),
            "cluster": format!("c{port}"),
        });
        listeners.push(listener(port, filter));
        clusters.push(cluster(port));
    }
    const HTTP: &str = "type.googleapis.com/envoy.extensions";
    for (port, codec, options) in
        [(H1_PORT, "HTTP1", "http_protocol_options"), (H2_PORT, "HTTP2", "http2_protocol_options")]
    {
        let route = json!({"cluster": format!("c{port}"), "timeout": "15s"});
        let filter = json!({
            "@type": format!("{HTTP}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": format!("s{port}"),
            "codec_type": codec,
            "http_filters": [
                {"name": "router", "typed_config": {"@type": format!("{HTTP}.filters.http.router.v3.Router")}},
            ],
            "route_config": {"name": format!("r{port}"), "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "retry_policy": {"retry_on": "connect-failure,refused-stream,unavailable,reset", "num_retries": 2},
                "routes": [
                    {"match": {"prefix": "/cart/"}, "route": route},
                    {"match": {"path": "/health", "headers": [{"name": "x-probe", "present_match": true}]}, "route": route},
                    {"match": {"prefix": "/"}, "route": route},
                ],
            }]},
        });
        listeners.push(listener(port, filter.clone()));
        let mut to = cluster(port);
        to["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{HTTP}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {options: {}},
            },
        });
        if port == H1_PORT {
            // The same with more to do: ten routes, retries by status, a breaker and outlier detection.
            let (name, mut filter, mut to) = (format!("routed{port}"), filter, to.clone());
            let route = json!({"cluster": name, "timeout": "15s"});
            let prefixes = OTHER_PATHS.iter().chain(&[PATH_1_KIB]);
            let host = &mut filter["route_config"]["virtual_hosts"][0];
            host["routes"] =
                prefixes.map(|path| json!({"match": {"path_separated_prefix": path}, "route": route})).collect();
            host["retry_policy"]["retry_on"] = json!("connect-failure,refused-stream,reset,gateway-error");
            filter["stat_prefix"] = json!(name);
            let mut listener = listener(port, filter);
            listener["address"] = address("0.0.0.0", port + ENVOY_ROUTED_OFFSET);
            listeners.push(listener);
            to["name"] = json!(name);
            to["load_assignment"]["cluster_name"] = json!(name);
            to["outlier_detection"] = json!({"consecutive_5xx": 5, "interval": "10s", "base_ejection_time": "30s"});
            clusters.push(to);
        }
        clusters.push(to);
    }
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string()
}

/// An HAProxy that leads from its own ports to the origin's beside it.
pub fn start_haproxy(place: &Place, binary: &Path, directory: &Path) -> Result<Process> {
    let path = directory.join("haproxy.cfg");
    fs::write(&path, haproxy_configuration(place.v4())).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(binary);
    command.arg("-db").arg("-f").arg(&path);
    let haproxy = place.spawn("haproxy", command)?;
    wait_for_ports(place, &haproxy, &[ECHO_PORT + HAPROXY_OFFSET, SINK_PORT + HAPROXY_OFFSET])?;
    Ok(haproxy)
}

fn haproxy_configuration(origin: IpAddr) -> String {
    let mut text = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n".to_owned();
    for port in [ECHO_PORT, SINK_PORT] {
        text.push_str(&format!(
            "listen l{port}\n  bind 0.0.0.0:{}\n  server s{port} {origin}:{port}\n",
            port + HAPROXY_OFFSET
        ));
    }
    text
}
