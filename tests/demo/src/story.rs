//! What happens in the demo, chapter by chapter. The chapters about the traffic itself are in [`crate::traffic`].

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::node::Node;
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{self, BpfObjects};
use heddle_testkit::process::Process;
use heddle_testkit::sweep;
use heddle_testkit::topology::MESH_LABEL;
use serde_json::json;

use crate::apps::{self, Connections, HTTP_1, LEDGER_PORT, PRICES_PORT, WEB_H2_PORT, WEB_PORT};
use crate::interrupt;
use crate::page::Page;
use crate::policy;

use crate::traffic::Traffic;
use crate::wire;
use crate::{routing, row};

pub const NAMESPACE: &str = "boutique";
const NODES: [&str; 2] = ["a", "b"];
const PODS: [&str; 7] = ["frontend", "web-1", "prices-1", "db", "web-2", "prices-2", "reports"];
/// A host that is no pod.
pub const OUTSIDER: &str = "laptop";
/// An echo server beside the ledger, for the load of the last chapter.
pub const ECHO_PORT: u16 = 7000;
/// Connections that the end of an agent may catch open: they come every 10 ms and last about one.
const OPEN_AT_KILL_MAX: u64 = 3;
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells it all; whatever happens, nothing stays behind.
pub fn tell(keep: bool) -> Result<()> {
    let started = Instant::now();
    let mut page = Page::open("Heddle", "a service mesh without sidecars: two nodes, real programs, real traffic");
    interrupt::check()?;
    apps::prepare()?;
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
    ensure!(page.failures() == 0, "{} of the checks above failed (the lines marked ✗)", page.failures());
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
        .pod("prices-1")
        .in_namespace(NAMESPACE)
        .node("b")
        .pod("db")
        .in_namespace(NAMESPACE)
        .serves(tcp(ECHO_PORT).quiet())
        .pod("web-2")
        .in_namespace(NAMESPACE)
        .pod("prices-2")
        .in_namespace(NAMESPACE)
        .pod("reports")
        .in_namespace(NAMESPACE)
        .service("web")
        .in_namespace(NAMESPACE)
        .port(80, WEB_PORT)
        .port(82, WEB_H2_PORT)
        .backed_by("web-1")
        .backed_by("web-2")
        .service("web-v1")
        .in_namespace(NAMESPACE)
        .port(80, WEB_PORT)
        .backed_by("web-1")
        .service("web-v2")
        .in_namespace(NAMESPACE)
        .port(80, WEB_PORT)
        .backed_by("web-2")
        .service("db")
        .in_namespace(NAMESPACE)
        .port(LEDGER_PORT, LEDGER_PORT)
        .port(ECHO_PORT, ECHO_PORT)
        .backed_by("db")
        .service("prices")
        .in_namespace(NAMESPACE)
        .port(PRICES_PORT, PRICES_PORT)
        .backed_by("prices-1")
        .backed_by("prices-2")
        // No pod is behind it, and its port says by its name what is spoken there.
        .service("cart")
        .in_namespace(NAMESPACE)
        .with("ports", json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]))
        .external(OUTSIDER)
        .with_ca()
        .start()
}

fn programs_directory(mesh: &Mesh) -> PathBuf {
    mesh.id().directory().join("apps")
}

/// What runs while the story is told. Programs end before the mesh does.
pub struct Demo {
    programs: Vec<Process>,
    pub mesh: Mesh,
}

impl Demo {
    fn start(mesh: Mesh) -> Result<Demo> {
        let directory = programs_directory(&mesh);
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let programs = vec![
            apps::nginx(mesh.pod("web-1"), &directory)?,
            apps::nginx(mesh.pod("web-2"), &directory)?,
            apps::prices(mesh.pod("prices-1"))?,
            apps::prices(mesh.pod("prices-2"))?,
            apps::ledger(mesh.pod("db"))?,
        ];
        Ok(Demo { programs, mesh })
    }

    /// The eBPF objects the nodes had, so that the caller can see that they are gone.
    fn tell(self, page: &mut Page, keep: bool) -> Result<Vec<BpfObjects>> {
        for chapter in [Self::nodes, Self::before, Self::label] {
            interrupt::check()?;
            chapter(&self, page)?;
        }
        Traffic::make(&self)?.tell(&self, page)?;
        interrupt::check()?;
        wire::after(&self, page)?;
        interrupt::check()?;
        routing::tell(&self, page)?;
        interrupt::check()?;
        policy::tell(&self, page)?;
        interrupt::check()?;
        self.kill(page)?;
        if keep {
            self.stay(page);
        }
        self.leave(page)
    }

    fn nodes(&self, page: &mut Page) -> Result<()> {
        page.chapter("Two nodes, joined by a bridge; pods in network namespaces and cgroups of their own");
        let programs = |pod: &str| match pod {
            "web-1" | "web-2" => "nginx",
            "prices-1" | "prices-2" => "a gRPC service in Python",
            "db" => "a ledger in Python: plain TCP, the server speaks first",
            "frontend" => "calls web by curl and db by Python",
            _ => "calls web by curl, db and prices by Python",
        };
        let mut rows = vec![row!["pod", "node", "address", "runs"]];
        rows.extend(PODS.map(|pod| {
            let pod = self.mesh.pod(pod);
            row![pod.name(), pod.node_name(), pod.v4(), programs(pod.name())]
        }));
        rows.push(row![OUTSIDER, "outside", self.mesh.external(OUTSIDER).v4(), "calls by curl"]);
        page.table(&rows);
        page.say(format!(
            "services: web {} → web-1, web-2    prices {} → prices-1, prices-2",
            self.service("web", 80),
            self.service("prices", PRICES_PORT),
        ));
        page.say(format!(
            "          db {} → db    cart {} → nobody: its pods are away",
            self.service("db", LEDGER_PORT),
            self.service("cart", 80),
        ));
        for node in self.mesh_nodes() {
            let agent = node.agent_pid()?;
            let (user, capabilities) = (probe::status_field(agent, "Uid")?, probe::status_field(agent, "CapEff")?);
            let user = user.split_whitespace().next().unwrap_or_default().to_owned();
            let is_powerless = user != "0" && u64::from_str_radix(&capabilities, 16) == Ok(0);
            let keeper = node.keeper_pid()?;
            page.verdict(
                is_powerless,
                format!(
                    "node {}: agent (pid {agent}) is user {user} with no capability; keeper (pid {keeper}) is privileged",
                    node.name()
                ),
            );
        }
        Ok(())
    }

    fn before(&self, page: &mut Page) -> Result<()> {
        page.chapter(&format!("Before: namespace {NAMESPACE} is not in the mesh"));
        let direct =
            apps::curl(self.mesh.pod("frontend"), self.pod("web-1", WEB_PORT), HTTP_1, 1, Connections::OneEach)?;
        let seen = direct
            .fetched
            .first()
            .context("frontend cannot reach web-1 without the mesh: the demo's network is broken")?;
        page.say(format!("frontend → web-1 at its own address: nginx saw {}, which is frontend", seen.client_seen));
        let service = apps::curl(self.mesh.pod("frontend"), self.service("web", 80), HTTP_1, 1, Connections::OneEach)?;
        ensure!(service.fetched.is_empty(), "a Service address answered without the mesh");
        page.say(format!(
            "frontend → service web {}: nobody answers, these nodes have no kube-proxy",
            self.service("web", 80)
        ));
        wire::before(self, page)
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
        let captured = started.elapsed();
        wire::wait_certified(self, &PODS)?;
        let restarted = self.programs.iter().filter(|program| !program.is_running()).count();
        page.verdict(
            restarted == 0,
            format!(
                "{} running pods captured in {} ms; no restart, no sidecar, no packet rule",
                PODS.len(),
                captured.as_millis()
            ),
        );
        page.say(format!(
            "each has a certificate for its service account {} ms later, from the CA on {}",
            (started.elapsed() - captured).as_millis(),
            self.mesh.ca().place().v4(),
        ));
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
        // Not `summary.refused`: that counts also what is reset before it was answered, which is the next verdict's.
        let refused = summary.attempted - summary.connected;
        page.verdict(refused == 0, format!("{} connections opened, {refused} refused", summary.attempted));
        page.verdict(
            // At this rate a connection or two may be open at the very moment; those are reset, and no other fails.
            interrupted <= OPEN_AT_KILL_MAX && summary.failures.keys().all(|why| why == "reset"),
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
        page.say(format!("{heddle} status    # or workloads, services, connections, policies, bpf, check; -o json"));
        page.say(format!(
            "{heddle} explain {NAMESPACE}/frontend web.{NAMESPACE}:80 --path /    # whether it is let in, and why"
        ));
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
            "nsenter --net={} curl http://{}{}    # policies.yaml lets it in below /item",
            frontend.netns().path().display(),
            self.service("web", 80),
            policy::PATH
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

    /// Where the programs have their files.
    pub fn programs_directory(&self) -> PathBuf {
        programs_directory(&self.mesh)
    }

    /// The nodes, in order.
    pub fn mesh_nodes(&self) -> [&Node; 2] {
        NODES.map(|name| self.mesh.node(name))
    }

    /// A Service's cluster address.
    pub fn service(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.service(name).cluster_v4(), port)
    }

    /// A pod's own address.
    pub fn pod(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.pod(name).v4(), port)
    }

    /// The name of a pod or host, the address itself if it has none.
    pub fn name_of(&self, ip: &str) -> String {
        let places = PODS.iter().map(|name| self.mesh.pod(name).v4()).zip(PODS);
        let mut places = places.chain([(self.mesh.external(OUTSIDER).v4(), OUTSIDER)]);
        places.find(|(address, _)| address.to_string() == ip).map_or_else(|| ip.to_owned(), |(_, name)| name.to_owned())
    }
}
