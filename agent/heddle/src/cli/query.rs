//! Questions to the running agent: HTTP over its Unix socket, answers as a table or as the JSON they came in.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use heddle_datapath::keeper::debug_socket_path;
use heddle_proto::debug::v1;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::table::render;
use super::{NamespaceOptions, Output, Query, QueryOptions, policy, route, yaml};
use crate::agent::requirement;

/// No answer takes longer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Asks and prints.
pub fn query(query: &Query) -> Result<ExitCode> {
    match query {
        Query::Status(options) => show(options, "status", status),
        Query::Workloads(options) => show(options, "workloads", workloads),
        Query::Services(options) => show(options, "services", services),
        Query::Connections(options) => show(options, "connections", connections),
        Query::Certs(options) => show(options, "certs", certs),
        Query::Policies(options) => show(options, "policies", policy::policies),
        Query::Routes(of) => show(&of.options, &of.path("routes"), route::routes),
        Query::Endpoints(of) => show(&of.options, &of.path("endpoints"), route::endpoints),
        Query::Explain(explain) => show(&explain.options, &policy::explain_path(explain), policy::explanation),
        Query::Bpf(options) => show(options, "bpf", bpf),
        Query::Check(options) => check(options),
        Query::LogLevel { levels: None, options } => show(options, "log-level", log_levels),
        Query::LogLevel { levels: Some(levels), options } => {
            let mut answer = v1::LogLevels::default();
            for part in levels.split(',') {
                let (target, level) = part.split_once('=').unwrap_or(("", part));
                let body = v1::LogLevel { target: target.to_owned(), level: level.to_owned() };
                answer = ask(&options.run_dir, "POST", "log-level", &serde_json::to_vec(&body)?)?;
            }
            print(options, &answer, log_levels)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl NamespaceOptions {
    fn path(&self, view: &str) -> String {
        match &self.namespace {
            Some(namespace) => format!("{view}?namespace={}", policy::encoded(namespace)),
            None => view.to_owned(),
        }
    }
}

fn show<T: DeserializeOwned + Serialize>(
    options: &QueryOptions,
    path: &str,
    table: impl Fn(&T) -> String,
) -> Result<ExitCode> {
    let answer: T = ask(&options.run_dir, "GET", path, &[])?;
    print(options, &answer, table)?;
    Ok(ExitCode::SUCCESS)
}

fn print<T: Serialize>(options: &QueryOptions, answer: &T, table: impl Fn(&T) -> String) -> Result<()> {
    let text = match options.output {
        Output::Table => table(answer),
        Output::Json => serde_json::to_string_pretty(answer)? + "\n",
        Output::Yaml => yaml::text(&serde_json::to_value(answer)?),
    };
    // A closed pipe (`heddle … | head`) is no failure.
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The node's own part of `check` works without an agent too.
fn check(options: &QueryOptions) -> Result<ExitCode> {
    let report = match ask::<v1::CheckReport>(&options.run_dir, "GET", "check", &[]) {
        Ok(report) => report,
        Err(error) => {
            let mut items: Vec<_> = heddle_datapath::node::requirements(None).into_iter().map(requirement).collect();
            items.push(v1::CheckItem {
                name: "agent".into(),
                ok: false,
                detail: format!("{error:#}"),
                fix: "start it: heddle agent --node NAME --source files:DIR".into(),
            });
            v1::CheckReport { ok: false, items, ..v1::CheckReport::default() }
        }
    };
    print(options, &report, check_table)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One HTTP/1.1 request with `connection: close`: the whole answer, then the end.
fn ask<T: DeserializeOwned>(run_dir: &Path, method: &str, path: &str, body: &[u8]) -> Result<T> {
    let socket = debug_socket_path(run_dir);
    let mut stream = UnixStream::connect(&socket).with_context(|| {
        format!("no agent answers at {} (are you root? is --run-dir right? is the agent running?)", socket.display())
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let head = format!(
        "{method} /debug/v1/{path} HTTP/1.1\r\nhost: heddle\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("the agent did not answer within {} s", TIMEOUT.as_secs()))?;
    let (status, body) = parse(&answer)?;
    if status != 200 {
        let error: v1::Error = serde_json::from_slice(body).unwrap_or_default();
        bail!("{}", if error.error.is_empty() { format!("the agent answered {status}") } else { error.error });
    }
    serde_json::from_slice(body).context("the agent's answer is not what this version understands")
}

/// Status and body of an answer with `content-length` or none, as our server writes it.
fn parse(answer: &[u8]) -> Result<(u16, &[u8])> {
    let broken = || anyhow!("the answer is no HTTP: is that socket an agent's?");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(broken)?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| broken())?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(broken)?;
    Ok((status, &answer[end + 4..]))
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.into()
}

fn status(s: &v1::Status) -> String {
    let mut rows = vec![
        vec!["node".into(), s.node.clone()],
        vec!["ready".into(), if s.ready { "yes".into() } else { format!("no: {}", s.not_ready.join("; ")) }],
        vec!["agent".into(), format!("{} (pid {}, up {:.0} s)", s.version, s.pid, s.uptime_seconds)],
        vec![
            "keeper".into(),
            if s.keeper_error.is_empty() { s.keeper_version.clone() } else { s.keeper_error.clone() },
        ],
        vec!["source".into(), if s.source_error.is_empty() { s.source.clone() } else { s.source_error.clone() }],
        vec![
            "objects".into(),
            format!(
                "{} workloads, {} services, {} rejected (generation {})",
                s.workloads, s.services, s.invalid_objects, s.snapshot_generation
            ),
        ],
        vec!["pods here".into(), format!("{} enrolled, {} failed", s.pods_enrolled, s.pods_failed)],
        vec!["identity".into(), s.identity.clone()],
        vec!["connections".into(), s.connections_open.to_string()],
        vec!["workers".into(), format!("{} ({} dead)", s.workers, s.workers_dead)],
    ];
    if s.draining {
        rows.push(vec!["draining".into(), "yes".into()]);
    }
    render(&["WHAT", "STATE"], &rows)
}

fn workloads(w: &v1::Workloads) -> String {
    let rows: Vec<_> = w
        .workloads
        .iter()
        .map(|w| {
            let mesh =
                if w.mesh_reason.is_empty() { w.mesh.clone() } else { format!("{} ({})", w.mesh, w.mesh_reason) };
            vec![
                w.namespace.clone(),
                w.name.clone(),
                w.node.clone(),
                w.addresses.join(","),
                mesh,
                w.mtls.clone(),
                w.capture.clone(),
                w.connections.to_string(),
                w.requests.to_string(),
                w.capture_error.clone(),
            ]
        })
        .collect();
    render(
        &["NAMESPACE", "POD", "NODE", "ADDRESSES", "MESH", "MTLS", "CAPTURE", "CONNECTIONS", "REQUESTS", "WHY"],
        &rows,
    )
}

fn services(s: &v1::Services) -> String {
    let mut rows = Vec::new();
    for service in &s.services {
        let addresses = if service.headless { "headless".into() } else { service.addresses.join(",") };
        for port in &service.ports {
            let ready = port.endpoints.iter().filter(|e| e.ready).count();
            let endpoints: Vec<_> = port.endpoints.iter().take(4).map(|e| e.address.clone()).collect();
            let more = if port.endpoints.len() > 4 { ",…" } else { "" };
            rows.push(vec![
                service.namespace.clone(),
                if service.invalid { format!("{} (rejected)", service.name) } else { service.name.clone() },
                addresses.clone(),
                if port.name.is_empty() { port.port.to_string() } else { format!("{}/{}", port.port, port.name) },
                format!("{ready}/{}", port.endpoints.len()),
                format!("{}{more}", endpoints.join(",")),
            ]);
        }
    }
    render(&["NAMESPACE", "SERVICE", "ADDRESSES", "PORT", "READY", "ENDPOINTS"], &rows)
}

fn connections(c: &v1::Connections) -> String {
    let rows: Vec<_> = c
        .connections
        .iter()
        .map(|c| {
            vec![
                c.id.to_string(),
                c.direction.clone(),
                c.state.clone(),
                if c.source.is_empty() { c.client.clone() } else { format!("{} ({})", c.source, c.client) },
                c.original_destination.clone(),
                c.service.clone(),
                if c.destination.is_empty() {
                    c.upstream.clone()
                } else {
                    format!("{} ({})", c.destination, c.upstream)
                },
                format!("{:.1}", c.age_seconds),
                c.requests.to_string(),
                c.bytes_received.to_string(),
                c.bytes_sent.to_string(),
                c.sni.clone(),
                c.transport.clone(),
                c.source_principal.clone(),
                c.destination_principal.clone(),
            ]
        })
        .collect();
    let mut text = render(
        &[
            "ID",
            "DIRECTION",
            "STATE",
            "FROM",
            "ORIGINAL DESTINATION",
            "SERVICE",
            "TO",
            "AGE s",
            "REQUESTS",
            "BYTES UP",
            "BYTES DOWN",
            "SNI",
            "TRANSPORT",
            "SOURCE IDENTITY",
            "DESTINATION IDENTITY",
        ],
        &rows,
    );
    if c.total > c.connections.len() as u64 {
        text.push_str(&format!("… {} of {} shown\n", c.connections.len(), c.total));
    }
    text
}

fn certs(c: &v1::Certificates) -> String {
    if !c.enabled {
        return "identities are off: this agent runs without --ca, and everything is plain text\n".into();
    }
    let certificates: Vec<_> = c
        .certificates
        .iter()
        .map(|c| {
            vec![
                c.id.clone(),
                c.state.clone(),
                c.serial.clone(),
                c.not_before.clone(),
                c.not_after.clone(),
                c.issuer.clone(),
                c.due.clone(),
                c.failures.to_string(),
                c.last_error.clone(),
            ]
        })
        .collect();
    let bundles: Vec<_> =
        c.bundles.iter().map(|b| vec![b.trust_domain.clone(), b.roots.to_string(), b.not_after.clone()]).collect();
    let headings =
        ["ID", "STATE", "SERIAL", "NOT BEFORE", "NOT AFTER", "ISSUER", "NEXT REQUEST", "FAILURES", "LAST ERROR"];
    let mut text = format!("authority {}, trust domain {}\n\n", c.authority, c.trust_domain);
    text.push_str(&render(&headings, &certificates));
    text.push('\n');
    text.push_str(&render(&["TRUST DOMAIN", "ROOTS", "LAST ENDS"], &bundles));
    if !c.keys_error.is_empty() {
        text.push_str(&format!("\nthe keeper does not hold the keys: {}\n", c.keys_error));
    }
    text
}

fn bpf(b: &v1::BpfView) -> String {
    let programs: Vec<_> = b
        .programs
        .iter()
        .map(|p| vec![p.name.clone(), p.id.to_string(), p.tag.clone(), p.attached_to.clone(), yes(p.ok)])
        .collect();
    let maps: Vec<_> = b
        .maps
        .iter()
        .map(|m| vec![m.name.clone(), m.id.to_string(), m.entries.to_string(), m.entries_max.to_string()])
        .collect();
    let rows: Vec<_> =
        b.rows.iter().map(|r| vec![r.subject.clone(), r.told.clone(), r.in_kernel.clone(), yes(r.ok)]).collect();
    let counters: Vec<_> = b
        .counters
        .iter()
        .filter(|c| c.count > 0)
        .map(|c| vec![c.verdict.clone(), c.reason.clone(), c.count.to_string()])
        .collect();
    format!(
        "ABI version {}\n\n{}\n{}\n{}\n{}",
        b.abi_version,
        render(&["PROGRAM", "ID", "TAG", "ATTACHED TO", "OK"], &programs),
        render(&["MAP", "ID", "ENTRIES", "MAX"], &maps),
        render(&["SUBJECT", "TOLD", "IN KERNEL", "OK"], &rows),
        render(&["VERDICT", "REASON", "COUNT"], &counters),
    )
}

fn check_table(report: &v1::CheckReport) -> String {
    let rows: Vec<_> = report
        .items
        .iter()
        .map(|i| vec![if i.ok { "ok" } else { "FAILED" }.into(), i.name.clone(), i.detail.clone(), i.fix.clone()])
        .collect();
    let mut text = render(&["", "CHECK", "FOUND", "FIX"], &rows);
    for (objects, heading) in [(&report.invalid, "WHAT IS WRONG"), (&report.warnings, "WHAT IS NOT IN FORCE")] {
        if objects.is_empty() {
            continue;
        }
        let rows: Vec<_> = objects
            .iter()
            .map(|o| {
                vec![
                    format!("{}:{}", o.origin, o.line),
                    format!("{} {}", o.kind, o.object),
                    o.field.clone(),
                    o.message.clone(),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&render(&["WHERE", "OBJECT", "FIELD", heading], &rows));
    }
    text
}

fn log_levels(l: &v1::LogLevels) -> String {
    let rows: Vec<_> = l
        .levels
        .iter()
        .map(|l| vec![if l.target.is_empty() { "(all others)".into() } else { l.target.clone() }, l.level.clone()])
        .collect();
    render(&["TARGET", "LEVEL"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split_or_refused() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{}").expect("http"), (200, &b"{}"[..]));
        for broken in [&b""[..], b"garbage", b"HTTP/1.1 x\r\n\r\n", b"\xff\xfe\r\n\r\n"] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
