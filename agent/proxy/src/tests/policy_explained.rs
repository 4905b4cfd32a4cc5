//! `explain` and the data plane: on random policies and requests, what is explained is what happens.

use std::collections::HashSet;

use heddle_model::policy::{
    Action, AuthorizationPolicy, HeaderMatch, HostMatch, Operation, PathMatch, PathTemplate, Rule, Rules, Source,
    TextMatch,
};
use heddle_model::{OriginalDst, PodUid};
use http::{HeaderMap, HeaderValue, Method, Uri};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::policy::{enforce, from, handed_over, policy};
use super::support::*;
use crate::explain::{Asked, Here, Question, explain};

/// Rounds: each a set of policies, held against each of some requests.
const ROUNDS: usize = 120;
const REQUESTS: usize = 6;

fn some_source() -> impl Strategy<Value = Source> {
    prop_oneof![
        3 => Just(from("client")),
        1 => Just(from("other")),
        1 => Just(Source { namespaces: vec!["shop".into()], ..Source::default() }),
        1 => Just(Source { not_namespaces: vec!["shop".into()], ..Source::default() }),
        1 => Just(Source { cidrs: vec!["127.0.0.0/8".parse().unwrap()], ..Source::default() }),
        1 => Just(Source { not_service_accounts: vec![("shop".into(), "client".into())], ..Source::default() }),
    ]
}

fn some_operation(port: u16) -> impl Strategy<Value = Operation> {
    let path = prop_oneof![
        Just(PathMatch::prefix("/a").unwrap()),
        Just(PathMatch::exact("/a/b").unwrap()),
        Just(PathMatch::Template(PathTemplate::new("/{x}/b").unwrap())),
    ];
    let header = HeaderMatch { name: "x-role".into(), value: TextMatch::Exact("admin".into()) };
    prop_oneof![
        3 => vec(path.clone(), 1..3).prop_map(|paths| Operation { paths, ..Operation::default() }),
        1 => path.prop_map(|path| Operation { not_paths: vec![path], ..Operation::default() }),
        1 => Just(Operation { methods: vec!["GET".into()], ..Operation::default() }),
        1 => Just(Operation { hosts: vec![HostMatch::new("web").unwrap()], ..Operation::default() }),
        1 => Just(Operation { headers: vec![header.clone()], ..Operation::default() }),
        1 => Just(Operation { not_headers: vec![header], ..Operation::default() }),
        1 => Just(Operation { ports: vec![port], ..Operation::default() }),
        1 => Just(Operation { ports: vec![port ^ 1], ..Operation::default() }),
    ]
}

fn some_policies(port: u16) -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let rule = (vec(some_source(), 0..2), vec(some_operation(port), 0..3)).prop_map(|(from, to)| Rule { from, to });
    let action = prop_oneof![3 => Just(Action::Allow), 2 => Just(Action::Deny), 1 => Just(Action::Audit)];
    let one = (action, prop::bool::weighted(0.15), vec(rule, 0..3), prop::bool::weighted(0.05));
    vec(one, 0..4).prop_map(|all| {
        let named = |(number, (action, dry_run, rules, is_rejected)): (usize, (Action, bool, Vec<Rule>, bool))| {
            let rules = if is_rejected { Rules::Rejected } else { Rules::Any(rules) };
            AuthorizationPolicy { dry_run, rules, ..policy(&format!("p{number}"), action, vec![]) }
        };
        all.into_iter().enumerate().map(named).collect()
    })
}

/// A request, or bytes that are none.
fn some_request() -> impl Strategy<Value = Option<(&'static str, &'static str, &'static str, Vec<&'static str>)>> {
    let request = (
        prop_oneof![Just("GET"), Just("DELETE")],
        prop_oneof![
            Just("/"),
            Just("/a"),
            Just("/a/b"),
            Just("/x/b?q"),
            Just("/a/../x"),
            Just("//a"),
            Just("/%61"),
            Just("/%00")
        ],
        prop_oneof![Just("web"), Just("other:80")],
        vec(prop_oneof![Just("admin"), Just("user")], 0..3),
    );
    prop_oneof![5 => request.prop_map(Some), 1 => Just(None)]
}

/// Answers every request, and gives bytes back.
async fn serve(application: TcpListener) {
    while let Ok((mut stream, _)) = application.accept().await {
        tokio::spawn(async move {
            let mut held = Vec::new();
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut chunk).await {
                held.extend_from_slice(&chunk[..count]);
                if held.first() == Some(&0) {
                    let _ = stream.write_all(&std::mem::take(&mut held)).await;
                }
                while let Some(end) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                    held.drain(..end + 4);
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        });
    }
}

/// The status that came, or 0 for a reset and 1 for bytes that came back.
async fn outcome(stream: &mut TcpStream, sent: &[u8]) -> u16 {
    if stream.write_all(sent).await.is_err() {
        return 0;
    }
    let mut got = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match soon(stream.read(&mut chunk)).await {
            Ok(0) | Err(_) => return 0,
            Ok(count) => got.extend_from_slice(&chunk[..count]),
        }
        if got == sent {
            return 1;
        }
        if got.starts_with(b"HTTP/1.1 ") && got.windows(4).any(|w| w == b"\r\n\r\n") {
            return std::str::from_utf8(&got[9..12]).unwrap().parse().unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_explained_is_what_happens() {
    let (node, application, vip) = handed_over(|_| {}).await;
    let port = application.local_addr().unwrap().port();
    let serving = tokio::spawn(serve(application));
    let seed = proptest::test_runner::RngSeed::Fixed(fastrand::u64(..));
    let mut runner = TestRunner::new(RunnerConfig { rng_seed: seed, ..RunnerConfig::default() });
    let pods: HashSet<PodUid> = ["client", "server"].map(PodUid::new).into();
    let (mut allowed, mut refused) = (0, 0);
    for _ in 0..ROUNDS {
        let policies = some_policies(port).new_tree(&mut runner).unwrap().current();
        enforce(&node.mesh, policies.clone());
        let requests = vec(some_request(), REQUESTS).new_tree(&mut runner).unwrap().current();
        for request in requests {
            let snapshot = node.mesh.snapshot();
            let caller = snapshot.workload(&PodUid::new("client")).unwrap();
            let asked = request.as_ref().map(|(method, path, host, roles)| {
                let mut headers = HeaderMap::new();
                for role in roles {
                    headers.append("x-role", HeaderValue::from_static(role));
                }
                let uri: Uri = format!("http://{host}{path}").parse().unwrap();
                Asked { method: method.parse::<Method>().unwrap(), uri, headers }
            });
            let here = Here { has_identities: true, pods: &pods };
            let question = Question { from: caller, to: OriginalDst::new(vip), request: asked.as_ref(), sni: None };
            let explained = explain(&snapshot, &here, &question);
            let [endpoint] = &explained.endpoints[..] else { panic!("{explained:?}") };
            let expected = match (endpoint.outcome, request.is_some()) {
                (Ok(()), true) => 200,
                (Ok(()), false) => 1,
                (Err(_), true) => endpoint.status().unwrap(),
                (Err(_), false) => 0,
            };
            let sent = match &request {
                Some((method, path, host, roles)) => {
                    let roles: String = roles.iter().map(|role| format!("X-Role: {role}\r\n")).collect();
                    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{roles}\r\n").into_bytes()
                }
                None => b"\x00\x01bytes".to_vec(),
            };
            let mut client = connect(vip).await;
            let happened = outcome(&mut client, &sent).await;
            assert_eq!(happened, expected, "{seed:?} {request:?}\n{policies:?}\n{explained:?}");
            *(if expected == 200 || expected == 1 { &mut allowed } else { &mut refused }) += 1;
        }
    }
    assert!(allowed > 50 && refused > 50, "{allowed} allowed and {refused} refused prove nothing");
    serving.abort();
}
