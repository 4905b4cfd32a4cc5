//! What a decision about one request costs, and what an update of one policy does, with a thousand pods and none, ten or ten thousand policies
//! on others of them (issue 5: at most 1 µs, and no slower for what is elsewhere):
//! `cargo run --release -p heddle-model --example policy_bench`.
//!
//! Prints one JSON object per line: times, the best of several rounds, as the noise of a shared machine only adds; then instructions, which
//! valgrind counts if it is on this machine. It starts this program again, as `policy_bench count <what> <policies elsewhere>`: the same
//! work, a fixed number of times.

use std::error::Error;
use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use heddle_model::policy::{
    Action, AuthorizationPolicy, HeaderMatch, HostMatch, IdentityMatch, Operation, PathMatch, PathTemplate, Peer,
    PortAccess, Principal, Request, Rule, Rules, Source, Target, TextMatch,
};
use heddle_model::workload::Labels;
use heddle_model::{
    Delta, Endpoint, PodUid, PolicyDelta, PolicyKey, Service, ServicePort, Snapshot, Workload, WorkloadPolicies,
};

const WORKLOADS: usize = 1_000;
const ELSEWHERE: [usize; 3] = [0, 10, 10_000];
const ROUNDS: usize = 20;
/// What a round does.
const DECISIONS: u32 = 20_000;
const CONNECTIONS: u32 = 5_000;
const UPDATES: u32 = 500;
/// What is done while instructions are counted.
const COUNTED: u32 = 1_000;
/// Issue 5: a decision may take this long, and this much longer for what is elsewhere.
const DECISION_NS_MAX: f64 = 1_000.0;
const RATIO_MAX: f64 = 1.05;

const PORT: u16 = 8080;

/// A request as the data plane has it: fields in order.
struct Asked {
    fields: Vec<(&'static str, &'static [u8])>,
}

impl Request for Asked {
    fn method(&self) -> &str {
        "GET"
    }

    fn host(&self) -> &str {
        "web.shop.svc.cluster.local"
    }

    fn path(&self) -> &str {
        "/api/v1/users/4711/orders"
    }

    fn header(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).for_each(|(_, value)| each(value));
    }
}

fn asked() -> Asked {
    let fields = [
        ("host", &b"web.shop.svc.cluster.local"[..]),
        ("user-agent", b"curl/8.5.0"),
        ("accept", b"*/*"),
        ("accept-encoding", b"gzip, br"),
        ("x-request-id", b"0d3ad2a5-6a1f-4d53-9d9a-2f3e0b7c5f11"),
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-tenant", b"red"),
        ("cookie", b"session=0123456789abcdef"),
    ];
    Asked { fields: fields.to_vec() }
}

fn peer() -> Peer<'static> {
    Peer {
        principal: Principal::of("spiffe://cluster.local/ns/front/sa/web", "cluster.local"),
        address: IpAddr::from([10, 9, 0, 7]),
    }
}

fn address(workload: usize) -> SocketAddr {
    let [_, _, high, low] = u32::try_from(workload).unwrap_or_default().to_be_bytes();
    SocketAddr::from(([10, 1, high, low], PORT))
}

fn uid(workload: usize) -> PodUid {
    PodUid::new(&format!("00000000-0000-0000-0000-{workload:012}"))
}

fn policy(name: &str, action: Action, from: Vec<Source>, to: Vec<Operation>) -> Arc<AuthorizationPolicy> {
    Arc::new(AuthorizationPolicy {
        namespace: "shop".into(),
        name: name.into(),
        target: Target::Labels(Labels::from([("app".to_owned(), "web".to_owned())])),
        action,
        dry_run: false,
        rules: Rules::Any(vec![Rule { from, to }]),
    })
}

/// Three of the usual kind: one keeps everybody off the administration, one lets a namespace read, one a workload do more.
fn usual() -> Result<Vec<Arc<AuthorizationPolicy>>, Box<dyn Error>> {
    let off = Operation { paths: vec![PathMatch::prefix("/admin")?], ..Operation::default() };
    let write = Operation {
        hosts: vec![HostMatch::new("*.svc.cluster.local")?],
        methods: vec!["POST".into(), "PUT".into()],
        ..Operation::default()
    };
    let read = Operation {
        ports: vec![PORT],
        methods: vec!["GET".into(), "HEAD".into()],
        paths: vec![PathMatch::Template(PathTemplate::new("/api/v1/users/{id}/{**}")?)],
        headers: vec![HeaderMatch { name: "x-tenant".into(), value: TextMatch::Exact("red".into()) }],
        ..Operation::default()
    };
    let not_admin = IdentityMatch::Exact("spiffe://cluster.local/ns/ops/sa/admin".into());
    let others = Source { not_identities: vec![not_admin], ..Source::default() };
    let writers = Source { service_accounts: vec![("ops".into(), "deploy".into())], ..Source::default() };
    let readers = Source { namespaces: vec!["front".into()], ..Source::default() };
    Ok(vec![
        policy("a-admin", Action::Deny, vec![others], vec![off]),
        policy("b-write", Action::Allow, vec![writers], vec![write]),
        policy("c-read", Action::Allow, vec![readers], vec![read]),
    ])
}

/// A thousand pods behind a hundred Services; three policies on the first pod, the others shared out among the rest.
fn snapshot(elsewhere: usize) -> Result<Snapshot, Box<dyn Error>> {
    let usual = usual()?;
    let key = |policy: &AuthorizationPolicy| -> PolicyKey { (policy.namespace.clone(), policy.name.clone()) };
    let mut of_pod: Vec<Vec<Arc<AuthorizationPolicy>>> = vec![Vec::new(); WORKLOADS];
    let mut policies = PolicyDelta::default();
    for number in 0..elsewhere {
        let like = &usual[number % usual.len()];
        let other = AuthorizationPolicy { name: format!("p{number}").into(), ..AuthorizationPolicy::clone(like) };
        let other = Arc::new(other);
        policies.authorization.push((key(&other), Some(Arc::clone(&other))));
        of_pod[1 + number % (WORKLOADS - 1)].push(other);
    }
    policies.authorization.extend(usual.iter().map(|policy| (key(policy), Some(Arc::clone(policy)))));
    of_pod[0] = usual;
    let mut delta = Delta::default();
    for (number, authorization) in of_pod.into_iter().enumerate() {
        let pod = Workload {
            addresses: vec![address(number).ip()],
            ..Workload::new(uid(number).as_str(), "shop", &format!("web-{number}"))
        };
        delta.workloads.push((uid(number), Some(pod)));
        policies.workloads.push((uid(number), Some(WorkloadPolicies { authorization, network: Vec::new() })));
    }
    for number in 0..WORKLOADS / 10 {
        let endpoints = (0..10).map(|pod| Endpoint::ready(address(10 * number + pod))).collect();
        let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, endpoints };
        let service = Service { ports: vec![port], ..Service::new("shop", &format!("web-{number}")) };
        delta.services.push((service.key(), Some(service)));
    }
    delta.policies = policies;
    Ok(Snapshot::new("node-1").apply(delta))
}

/// Decides about one request after the other, as on a connection that stays open.
#[inline(never)]
fn decisions(access: &PortAccess, times: u32) -> u32 {
    let (asked, peer) = (asked(), peer());
    (0..times).map(|_| u32::from(black_box(access).decide(&peer, Some(&asked), &mut ()).is_allowed)).sum()
}

/// Takes connections with one request each: what applies to the port is found and sorted out for every one.
#[inline(never)]
fn connections(snapshot: &Snapshot, times: u32) -> u32 {
    let (asked, peer, pod) = (asked(), peer(), uid(0));
    let one = |_| {
        let access = black_box(snapshot).port_access(&pod, address(0));
        u32::from(access.decide(&peer, Some(&asked), &mut ()).is_allowed)
    };
    (0..times).map(one).sum()
}

/// Publishes one changed policy of the first pod after the other.
#[inline(never)]
fn updates(snapshot: &Snapshot, times: u32) -> u32 {
    let mut lived = snapshot.clone();
    let first = snapshot.policies_of(&uid(0)).map(|of_pod| of_pod.authorization.clone()).unwrap_or_default();
    for round in 0..times {
        let mut of_pod = first.clone();
        let Some(changed) = of_pod.get_mut(2).map(Arc::make_mut) else { return 0 };
        changed.action = if round % 2 == 0 { Action::Deny } else { Action::Allow };
        let key = (changed.namespace.clone(), changed.name.clone());
        let policies = PolicyDelta {
            authorization: vec![(key, of_pod.get(2).cloned())],
            workloads: vec![(uid(0), Some(WorkloadPolicies { authorization: of_pod, network: Vec::new() }))],
            ..PolicyDelta::default()
        };
        lived = lived.apply(Delta { policies, ..Delta::default() });
    }
    u32::try_from(lived.policy_generation - snapshot.policy_generation).unwrap_or_default()
}

/// What is measured, by the name of its function.
const WORK: [(&str, u32); 3] = [("decisions", DECISIONS), ("connections", CONNECTIONS), ("updates", UPDATES)];

fn work(what: &str, snapshot: &Snapshot, times: u32) -> Result<(), Box<dyn Error>> {
    let done = match what {
        "decisions" => decisions(&snapshot.port_access(&uid(0), address(0)), times),
        "connections" => connections(snapshot, times),
        "updates" => updates(snapshot, times),
        _ => return Err(format!("{what} is none of decisions, connections, updates").into()),
    };
    if done == times { Ok(()) } else { Err(format!("{what}: {done} of {times}").into()) }
}

fn report(what: &str, elsewhere: usize, unit: &str, value: f64, bar: Option<f64>) {
    let what = what.strip_suffix('s').unwrap_or(what);
    let bar = bar.map_or(String::new(), |bar| format!(",\"bar\":{bar}"));
    println!("{{\"metric\":\"{what}, {elsewhere} elsewhere\",\"unit\":\"{unit}\",\"value\":{value:.3}{bar}}}");
}

fn times() -> Result<(), Box<dyn Error>> {
    for elsewhere in ELSEWHERE {
        let snapshot = snapshot(elsewhere)?;
        for (what, times) in WORK {
            let mut best = f64::INFINITY;
            for _ in 0..ROUNDS {
                let started = Instant::now();
                work(what, &snapshot, times)?;
                best = best.min(started.elapsed().as_nanos() as f64 / f64::from(times));
            }
            report(what, elsewhere, "ns", best, (what == "decisions").then_some(DECISION_NS_MAX));
        }
    }
    Ok(())
}

/// Instructions of one of these, counted by valgrind inside of the function alone.
fn instructions(what: &str, elsewhere: usize) -> Result<f64, Box<dyn Error>> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(format!("--toggle-collect=policy_bench::{what}*")).arg(std::env::current_exe()?);
    let output = valgrind.args(["count", what, &elsewhere.to_string()]).output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    let count =
        told.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim().parse::<f64>());
    match count {
        Some(Ok(count)) if output.status.success() => Ok(count / f64::from(COUNTED)),
        _ => Err(format!("valgrind: {}\n{told}", output.status).into()),
    }
}

fn counts() -> Result<(), Box<dyn Error>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("valgrind is not on this machine: instructions are not counted");
        return Ok(());
    }
    for (what, _) in WORK {
        let [none, _, many] = ELSEWHERE;
        let (alone, among) = (instructions(what, none)?, instructions(what, many)?);
        report(what, none, "instructions", alone, None);
        report(what, many, "instructions", among, None);
        report(what, many, "times as many", among / alone, (what != "updates").then_some(RATIO_MAX));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            times()?;
            counts()
        }
        ["count", what, elsewhere] => work(what, &snapshot(elsewhere.parse()?)?, COUNTED),
        _ => Err("policy_bench [count <decisions|connections|updates> <policies elsewhere>]".into()),
    }
}
