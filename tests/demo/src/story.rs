//! What happens in the demo, chapter by chapter.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use heddle_testkit::node::Node;
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{self, BpfObjects};
use heddle_testkit::process::Process;
use heddle_testkit::sweep;
use heddle_testkit::topology::MESH_LABEL;
use serde_json::Value;

use crate::account::{self, Edge};
use crate::apps::{self, LEDGER_PORT, WEB_PORT};
use crate::interrupt;
use crate::page::Page;
use crate::row;

const NAMESPACE: &str = "boutique";
const NODES: [&str; 2] = ["a", "b"];
const PODS: [&str; 5] = ["frontend", "web-1", "db", "web-2", "reports"];
const OUTSIDER: &str = "laptop";
/// An echo server beside the ledger, for the load of the last chapter.
const ECHO_PORT: u16 = 7000;
const REQUESTS: usize = 20;
/// The agent's listener in every captured pod.
const OUTBOUND_PORT: u16 = 15001;
const ENROL_TIMEOUT: Duration = Duration::from_secs(10);
const RECORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Metrics shown, with the labels that are summed over.
const METRICS: [(&str, &str); 9] = [
    ("heddle_datapath_connections_total", "direction=\"outbound\" verdict=\"captured\""),
    ("heddle_datapath_connections_total", "direction=\"inbound\" verdict=\"captured\""),
    ("heddle_datapath_connections_total", "verdict=\"refused\""),
    ("heddle_datapath_records_total", "event=\"missing\""),
    ("istio_tcp_connections_opened_total", "reporter=\"source\""),
    ("istio_tcp_connections_opened_total", "reporter=\"destination\""),
    ("istio_tcp_sent_bytes_total", "reporter=\"destination\""),
    ("istio_tcp_received_bytes_total", "reporter=\"destination\""),
    ("heddle_tcp_connections_ended_total", "reason=\"completed\""),
];

/// Tells it all; whatever happens, nothing stays behind.
pub fn tell(keep: bool) -> Result<()> {
    let started = Instant::now();
    let mut page = Page::open("Heddle", "a service mesh without sidecars: two nodes, real programs, real traffic");
    interrupt::check()?;
    let mesh = build()?.quietly();
    let id = mesh.id();
    let told = Demo::start(mesh).and_then(|demo| demo.tell(&mut page, keep));
    // The mesh is gone by here, with its namespaces, cgroups, pins and files.
    let traces = sweep::traces(id)?;
    let kernel = told?;
    let alive = kernel.iter().map(BpfObjects::alive).collect::<Result<Vec<_>>>()?.concat();
    page.verdict(
        traces.is_empty() && alive.is_empty(),
        if traces.is_empty() && alive.is_empty() {
            "and the machine is as it was: no namespace, cgroup, eBPF object or file is left".to_owned()
        } else {
            format!("left behind: {}", [traces, alive].concat().join(", "))
        },
    );
    page.remark(format!("{:.0} seconds in all", started.elapsed().as_secs_f64()));
    Ok(())
}

fn build() -> Result<Mesh> {
    Mesh::declare("demo")
        .namespace(NAMESPACE)
        .node("a")
        .pod("frontend")
        .in_namespace(NAMESPACE)
        .pod("web-1")
        .in_namespace(NAMESPACE)
        .node("b")
        .pod("db")
        .in_namespace(NAMESPACE)
        .serves(tcp(ECHO_PORT).quiet())
        .pod("web-2")
        .in_namespace(NAMESPACE)
        .pod("reports")
        .in_namespace(NAMESPACE)
        .service("web")
        .in_namespace(NAMESPACE)
        .port(80, WEB_PORT)
        .backed_by("web-1")
        .backed_by("web-2")
        .service("db")
        .in_namespace(NAMESPACE)
        .port(LEDGER_PORT, LEDGER_PORT)
        .port(ECHO_PORT, ECHO_PORT)
        .backed_by("db")
        .external(OUTSIDER)
        .start()
}

/// What runs while the story is told. Programs end before the mesh does.
struct Demo {
    programs: Vec<Process>,
    mesh: Mesh,
}

impl Demo {
    fn start(mesh: Mesh) -> Result<Demo> {
        let directory: PathBuf = mesh.id().directory().join("apps");
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let programs = vec![
            apps::nginx(mesh.pod("web-1"), &directory)?,
            apps::nginx(mesh.pod("web-2"), &directory)?,
            apps::ledger(mesh.pod("db"))?,
        ];
        Ok(Demo { programs, mesh })
    }

    /// The eBPF objects the nodes had, so that the caller can see that they are gone.
    fn tell(self, page: &mut Page, keep: bool) -> Result<Vec<BpfObjects>> {
        let chapters = [Self::nodes, Self::before, Self::label, Self::traffic, Self::metrics, Self::kill];
        for chapter in chapters {
            interrupt::check()?;
            chapter(&self, page)?;
        }
        if keep {
            self.stay(page);
        }
        self.leave(page)
    }

    fn nodes(&self, page: &mut Page) -> Result<()> {
        page.chapter("Two nodes, joined by a bridge; pods in network namespaces and cgroups of their own");
        let programs = |pod: &str| match pod {
            "web-1" | "web-2" => "nginx",
            "db" => "a ledger that speaks first",
            _ => "calls by curl and Python",
        };
        let mut rows = vec![row!["pod", "node", "address", "runs"]];
        rows.extend(PODS.map(|pod| {
            let pod = self.mesh.pod(pod);
            row![pod.name(), pod.node_name(), pod.v4(), programs(pod.name())]
        }));
        rows.push(row![OUTSIDER, "outside", self.mesh.external(OUTSIDER).v4(), "calls by curl"]);
        page.table(&rows);
        page.say(format!(
            "services: web {} → two nginx    db {} → the ledger",
            self.service("web", 80),
            self.service("db", LEDGER_PORT)
        ));
        for node in self.mesh_nodes() {
            let agent = node.agent_pid()?;
            let (user, capabilities) = (probe::status_field(agent, "Uid")?, probe::status_field(agent, "CapEff")?);
            let user = user.split_whitespace().next().unwrap_or_default().to_owned();
            let is_powerless = user != "0" && u64::from_str_radix(&capabilities, 16) == Ok(0);
            let keeper = node.keeper_pid()?;
            page.verdict(
                is_powerless,
                format!("node {}: agent (pid {agent}) is user {user} with no capability; keeper (pid {keeper}) has the privileges", node.name()),
            );
        }
        Ok(())
    }

    fn before(&self, page: &mut Page) -> Result<()> {
        page.chapter(&format!("Before: namespace {NAMESPACE} is not in the mesh"));
        let direct = apps::curl(self.mesh.pod("frontend"), self.pod("web-1", WEB_PORT), 1)?;
        let seen = direct
            .fetched
            .first()
            .context("frontend cannot reach web-1 without the mesh: the demo's network is broken")?;
        page.say(format!("frontend → web-1 at its own address: nginx saw {}, which is frontend", seen.client_seen));
        let service = apps::curl(self.mesh.pod("frontend"), self.service("web", 80), 1)?;
        ensure!(service.fetched.is_empty(), "a Service address answered without the mesh");
        page.say(format!(
            "frontend → service web {}: nobody answers, these nodes have no kube-proxy",
            self.service("web", 80)
        ));
        Ok(())
    }

    fn label(&self, page: &mut Page) -> Result<()> {
        page.chapter(&format!("kubectl label namespace {NAMESPACE} {MESH_LABEL}=enabled"));
        let started = Instant::now();
        self.mesh.edit_namespace(NAMESPACE, |namespace| {
            _ = namespace.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned())
        })?;
        for pod in PODS.map(|name| self.mesh.pod(name)) {
            self.mesh.node_of(pod).wait_enrolled(pod, ENROL_TIMEOUT)?;
        }
        let restarted = self.programs.iter().filter(|program| !program.is_running()).count();
        page.verdict(
            restarted == 0,
            format!(
                "{} running pods captured in {} ms; no restart, no sidecar, no packet rule",
                PODS.len(),
                started.elapsed().as_millis()
            ),
        );
        Ok(())
    }

    fn traffic(&self, page: &mut Page) -> Result<()> {
        page.chapter("Traffic, and who talked to whom");
        let (web, db) = (self.service("web", 80), self.service("db", LEDGER_PORT));
        let (frontend, reports) = (self.mesh.pod("frontend"), self.mesh.pod("reports"));
        let by_frontend = apps::curl(frontend, web, REQUESTS)?;
        let by_reports = apps::curl(reports, web, REQUESTS)?;
        let by_laptop = apps::curl(self.mesh.external(OUTSIDER), self.pod("web-2", WEB_PORT), REQUESTS / 4)?;
        // One conversation is held open, so that the kernel's own view of it can be shown.
        let held = apps::call_ledger(frontend, db, Duration::from_secs(2))?;
        let told = held.told()?;
        let (app_socket, agent_socket) =
            (apps::kernel_view(frontend, OUTBOUND_PORT)?, apps::kernel_view(frontend, LEDGER_PORT)?);
        apps::call_ledger(reports, db, Duration::ZERO)?.finish()?;
        held.finish()?;
        interrupt::check()?;

        let wanted = (2 * REQUESTS + REQUESTS / 4 + 2) as u64;
        let edges = self.edges(wanted)?;
        let mut rows = vec![row!["caller", "callee", "asked for", "connections", "bytes there", "back", "carried by"]];
        rows.extend(edges.iter().map(|((caller, callee), edge)| {
            row![caller, callee, asked_for(edge), edge.connections(), edge.bytes().0, edge.bytes().1, edge.path()]
        }));
        page.table(&rows);
        let failed = by_frontend.failed + by_reports.failed + by_laptop.failed;
        page.verdict(failed == 0, format!("{failed} of {wanted} conversations failed"));

        page.chapter("What each application saw");
        let mut rows = vec![row!["application", "connection", "saw", "which is"]];
        let mut is_true = true;
        let mut note = |application: &str, connection: &str, seen: IpAddr, truth: IpAddr, what: &str| {
            is_true &= seen == truth;
            rows.push(row![
                application,
                connection,
                seen,
                if seen == truth { what.to_owned() } else { format!("WRONG: it is {truth}") }
            ]);
        };
        for (name, fetches, caller) in [
            ("frontend", &by_frontend, frontend.v4()),
            ("reports", &by_reports, reports.v4()),
            (OUTSIDER, &by_laptop, self.mesh.external(OUTSIDER).v4()),
        ] {
            for server in ["web-1", "web-2"] {
                let Some(fetched) = fetches.fetched.iter().find(|fetched| fetched.server == server) else { continue };
                note(
                    &format!("nginx on {server}"),
                    &format!("from {name}"),
                    fetched.client_seen,
                    caller,
                    "the caller's own address",
                );
            }
        }
        note("ledger on db", "from frontend", told.client_seen, frontend.v4(), "the caller's own address");
        let seen = by_frontend.fetched.first().context("curl on frontend fetched nothing")?.server_seen;
        note("curl on frontend", "to service web", seen.ip(), web.ip(), "the address it asked for");
        note("Python on frontend", "to service db", told.server_seen, db.ip(), "the address it asked for");
        page.table(&rows);
        page.verdict(is_true, "the same addresses as without a mesh, on every side");
        page.remark("behind it, in the kernel's own words, frontend's connection to the ledger was two:");
        page.remark(format!("  the application's  {}, the agent's listener", app_socket.join(", ")));
        page.remark(format!("  the agent's        {}, from the pod's own address", agent_socket.join(", ")));
        Ok(())
    }

    fn metrics(&self, page: &mut Page) -> Result<()> {
        page.chapter("What the metrics say, so far");
        let pages = self.mesh_nodes().iter().map(|node| node.metrics()).collect::<Result<Vec<String>>>()?;
        let mut rows = vec![row!["metric", "of which", "node a", "node b"]];
        for (metric, labels) in METRICS {
            let labels: Vec<&str> = labels.split(' ').filter(|label| !label.is_empty()).collect();
            let sums = pages.iter().map(|text| account::sum(text, metric, &labels).to_string());
            rows.push([metric.to_owned(), labels.join(" ").replace('"', "")].into_iter().chain(sums).collect());
        }
        page.table(&rows);
        for node in self.mesh_nodes() {
            let memory = probe::usage(node.agent_pid()?)?.rss_kib + probe::usage(node.keeper_pid()?)?.rss_kib;
            page.remark(format!(
                "node {}: agent and keeper together hold {:.1} MiB (a debug build)",
                node.name(),
                memory as f64 / 1024.0
            ));
        }
        Ok(())
    }

    fn kill(&self, page: &mut Page) -> Result<()> {
        page.chapter("kill -9 of agent a, under 100 new connections a second");
        let to = self.service("db", ECHO_PORT);
        let load =
            self.mesh.pod("frontend").start_client(&dial(to.ip(), to.port()).rate(100, Duration::from_secs(4)))?;
        interrupt::pause(Duration::from_millis(1500));
        let node = self.mesh.node("a");
        let killed = Instant::now();
        node.kill_agent()?;
        // Long enough that connections pile up behind nobody.
        thread::sleep(Duration::from_millis(300));
        node.start_agent()?;
        let back = killed.elapsed();
        let summary = load.finish()?.summary;
        let interrupted = summary.attempted - summary.succeeded;
        page.say(format!("the next agent took the keeper's listeners {} ms after the kill", back.as_millis()));
        page.verdict(
            summary.refused == 0,
            format!("{} connections opened, {} refused", summary.attempted, summary.refused),
        );
        page.verdict(
            interrupted == 0,
            format!(
                "{} answered; median {:.1} ms, the longest waited {} ms for its agent",
                summary.succeeded,
                summary.exchange_p50_us as f64 / 1000.0,
                summary.slowest_exchange_us / 1000
            ),
        );
        if interrupted > 0 {
            page.remark(format!(
                "the others: {:?} (a connection open at that moment ends with a reset, never with a hang)",
                summary.failures
            ));
        }
        Ok(())
    }

    /// Waits until somebody has seen enough.
    fn stay(&self, page: &mut Page) {
        page.chapter("It keeps running: look around from another terminal, end it with Ctrl-C here");
        for node in self.mesh_nodes() {
            page.say(format!("export HEDDLE_RUN_DIR={}    # node {}", node.paths().run.display(), node.name()));
        }
        let heddle = self.mesh.node("a").paths().heddle.display();
        page.say(format!("{heddle} status    # or workloads, services, connections, bpf, check; -o json"));
        for node in self.mesh_nodes() {
            page.say(format!("nsenter --net={} curl -s http://127.0.0.1:15020/metrics", node.netns().path().display()));
        }
        page.remark("in a pod");
        let frontend = self.mesh.pod("frontend");
        page.say(format!(
            "echo $$ > {}/cgroup.procs    # once, so that this shell counts as the pod's",
            frontend.cgroup().path().display()
        ));
        page.say(format!(
            "nsenter --net={} curl http://{}/",
            frontend.netns().path().display(),
            self.service("web", 80)
        ));
        page.remark("the objects, reloaded when a file is replaced");
        page.say(format!("ls {}", self.mesh.source().directory().display()));
        while !interrupt::requested() {
            interrupt::pause(Duration::from_secs(1));
        }
    }

    fn leave(self, page: &mut Page) -> Result<Vec<BpfObjects>> {
        page.chapter("Leaving");
        let mut kernel = Vec::new();
        for node in self.mesh_nodes() {
            let objects = node.bpf_objects()?;
            let answer = node.heddle(&["uninstall", "--node"])?;
            ensure!(answer.status.success(), "heddle uninstall --node on node {}: {}", node.name(), answer.stderr);
            let left = wait_for("the agent's and keeper's ends", ENROL_TIMEOUT, || {
                let left = node.leftovers(&objects)?;
                Ok(left.is_empty().then_some(left))
            });
            let counts = format!(
                "{} programs, {} maps, {} links",
                objects.programs.len(),
                objects.maps.len(),
                objects.links.len()
            );
            match left {
                Ok(_) => page.verdict(
                    true,
                    format!("heddle uninstall --node on {}: {counts} gone, and every listener and pin", node.name()),
                ),
                Err(_) => page
                    .verdict(false, format!("left on node {}: {}", node.name(), node.leftovers(&objects)?.join(", "))),
            }
            kernel.push(objects);
        }
        Ok(kernel)
    }

    fn mesh_nodes(&self) -> [&Node; 2] {
        NODES.map(|name| self.mesh.node(name))
    }

    fn service(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.service(name).cluster_v4(), port)
    }

    fn pod(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.pod(name).v4(), port)
    }

    /// Edges from both nodes' access logs, once all that is expected has been written.
    fn edges(&self, wanted: u64) -> Result<std::collections::BTreeMap<(String, String), Edge>> {
        let mut last = Vec::new();
        let complete = wait_for("the access records of the traffic", RECORDS_TIMEOUT, || {
            last = self.mesh_nodes().iter().flat_map(|node| node.access_log()).collect::<Vec<Value>>();
            let edges = account::edges(&last, |ip| self.name_of(ip));
            Ok((edges.values().map(Edge::connections).sum::<u64>() >= wanted).then_some(edges))
        });
        match complete {
            Ok(edges) => Ok(edges),
            Err(error) if last.is_empty() => bail!("{error}: the agents wrote no access record"),
            Err(_) => Ok(account::edges(&last, |ip| self.name_of(ip))),
        }
    }

    fn name_of(&self, ip: &str) -> String {
        let places = PODS.iter().map(|name| self.mesh.pod(name).v4()).zip(PODS);
        let mut places = places.chain([(self.mesh.external(OUTSIDER).v4(), OUTSIDER)]);
        places.find(|(address, _)| address.to_string() == ip).map_or_else(|| ip.to_owned(), |(_, name)| name.to_owned())
    }
}

/// `web.boutique` for the service's full name, or that the pod itself was called.
fn asked_for(edge: &Edge) -> String {
    let (host, port) = edge.service.rsplit_once(':').unwrap_or((&edge.service, ""));
    match host.split_once(".svc.") {
        Some((name, _)) if !port.is_empty() => format!("{name}:{port}"),
        Some((name, _)) => name.to_owned(),
        None if host.is_empty() => "the pod's address".to_owned(),
        None => edge.service.clone(),
    }
}
