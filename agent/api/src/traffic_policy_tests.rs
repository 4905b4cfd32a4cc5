//! TrafficPolicies: what is read, onto which settings, and what is refused.

use heddle_model::balance::SlowStart;
use heddle_model::policy::Pattern;
use heddle_model::routing::{HeaderMatch, ValueMatch};
use heddle_model::traffic::{
    Abort, Algorithm, Backoff, Balance, BudgetLimits, CircuitLimits, Conditions, Faults, GrpcCodes, Limits,
    OutlierSettings, Retries, RetryPolicy, Share, StatusSet, SuccessRate, Timeouts,
};

use super::*;
use crate::NEVER;
use crate::object::{Object, read};

/// The policy `shop/web` with this `spec`, what is wrong with it as `field: message`, and its warnings.
fn policy(spec: &str) -> (Arc<TrafficPolicy>, Vec<String>, Vec<String>) {
    let text = format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: shop, \
         creationTimestamp: 2026-08-09T10:11:12Z}}\nspec: {{{spec}}}\n"
    );
    let reading = read("f.yaml", text.as_bytes());
    let told =
        |list: &[heddle_model::InvalidObject]| list.iter().map(|i| format!("{}: {}", i.field, i.message)).collect();
    let [item] = &reading.items[..] else { panic!("{text}: {reading:?}") };
    let Object::TrafficPolicy(policy) = &item.object else { panic!("{reading:?}") };
    (Arc::clone(policy), told(&reading.invalid), told(&reading.warnings))
}

const SERVICE: &str = "targetRefs: [{kind: Service, name: web}]";
const ROUTE: &str = "targetRefs: [{kind: HTTPRoute, name: web}]";

/// What a policy for a Service says.
fn settings(fields: &str) -> ServiceTraffic {
    let (policy, invalid, _) = policy(&format!("{SERVICE}, {fields}"));
    assert_eq!(invalid, Vec::<String>::new(), "{fields}");
    ServiceTraffic::clone(policy.settings.as_ref().unwrap())
}

fn retries(fields: &str) -> RetryPolicy {
    let policy = RetryPolicy::clone(settings(&format!("retries: {{{fields}}}")).request.retry.as_ref().unwrap());
    assert!(policy.said.is_some(), "what is not said gives way to others");
    RetryPolicy { said: None, ..policy }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const FULL: &str = r#"
  targetRefs: [{group: "", kind: Service, name: web}, {kind: Service, name: api}],
  retries: {attempts: 4, perTryTimeout: 500ms, backoff: {min: 5ms, base: 10ms, max: 1s}, retryOn: [ConnectFailure, ResetBeforeResponse],
    statuses: [503, 429], grpcCodes: [UNAVAILABLE, ABORTED], headers: [X-Retry], waitMax: 3s},
  retryBudget: {percent: 30, minPerSecond: 5},
  timeouts: {request: 10s, backendRequest: 2s, idle: 1m, stream: 1h, connect: 300ms},
  circuitBreaker: {service: {connections: 1, pending: 2, requests: 3, retries: 0}, endpoint: {requests: 9}},
  outlierDetection: {consecutive5xx: 1, consecutiveGatewayErrors: 2, consecutiveLocalErrors: 0,
    successRate: {minHosts: 3, minRequests: 10, stdevFactor: 2}, interval: 1s, baseEjection: 2s, maxEjection: 3s, maxEjectedPercent: 100,
    panicPercent: 0, maxRetryAfter: 0s},
  loadBalancing: {algorithm: PeakEwma, slowStart: {window: 30s, aggression: 0.5, minShare: 0.25}},
  faults: {headers: [{name: X-Test, exact: a}, {name: b, regex: "c|d"}], delay: {percent: 10, duration: 2s},
    abort: {fraction: {numerator: 1, denominator: 1000}, grpcStatus: UNAVAILABLE}}"#;

#[test]
fn every_field_is_read() {
    let (policy, invalid, warnings) = policy(FULL);
    assert_eq!((invalid, warnings), (vec![], vec![]));
    assert_eq!(policy.created.map(heddle_model::Timestamp::unix), Some(1_786_270_272));
    assert_eq!(policy.key, ("shop".into(), "web".into()));
    let target = |name: &str| TrafficTarget::Service(("shop".into(), name.into()));
    assert_eq!(*policy.targets, [target("web"), target("api")]);
    let header = |name: &str, value| HeaderMatch { name: name.into(), value };
    let told = Conditions {
        connect_failure: true,
        refused_stream: false,
        reset_before_response: true,
        per_try_timeout: false,
        statuses: StatusSet::from_iter([429, 503]),
        grpc_codes: GrpcCodes::NONE,
        headers: Box::new(["x-retry".into()]),
    };
    let codes = GrpcCodes::from_iter([10, 14]);
    let retry = RetryPolicy {
        idempotent: told,
        other: Conditions { connect_failure: true, grpc_codes: codes, ..Conditions::default() },
        retries_max: 4,
        per_try_timeout: Some(ms(500)),
        backoff: Backoff { least: ms(5), base: ms(10), max: ms(1000) },
        wait_max: ms(3000),
        said: Some(Arc::new(Retries {
            retries_max: Some(4),
            per_try_timeout: Some(ms(500)),
            least: Some(ms(5)),
            base: Some(ms(10)),
            max: Some(ms(1000)),
            failures: Some(Conditions { connect_failure: true, reset_before_response: true, ..Conditions::default() }),
            statuses: Some(StatusSet::from_iter([429, 503])),
            grpc_codes: Some(codes),
            headers: Some(Box::new(["x-retry".into()])),
            non_idempotent: None,
            wait_max: Some(ms(3000)),
        })),
    };
    let faults = Faults {
        matches: Box::new([
            header("x-test", ValueMatch::Exact("a".into())),
            header("b", ValueMatch::Regex(Pattern::new("c|d").unwrap())),
        ]),
        delay: Some((Share::of(10, 100), ms(2000))),
        abort: Some((Share::of(1, 1000), Abort::Grpc(14))),
    };
    let timeouts = Timeouts {
        request: Some(ms(10_000)),
        backend_request: Some(ms(2000)),
        idle: Some(ms(60_000)),
        stream: Some(ms(3_600_000)),
    };
    let expected = ServiceTraffic {
        origin: Some("shop/web".into()),
        request: RequestTraffic { retry: Some(Arc::new(retry)), timeouts, faults: Some(Arc::new(faults)) },
        budget: BudgetLimits { percent: 30, floor_per_second: 5, ..BudgetLimits::default() },
        circuit: CircuitLimits {
            service: Limits { connections_max: 1, pending_max: 2, requests_max: 3, retries_max: Some(0) },
            endpoint: Limits { requests_max: 9, ..Limits::default() },
        },
        outlier: Some(OutlierSettings {
            consecutive_5xx: 1,
            consecutive_gateway: 2,
            consecutive_local: 0,
            success_rate: Some(SuccessRate { hosts_min: 3, requests_min: 10, stdev_factor: 2.0 }),
            interval: ms(1000),
            ejection_base: ms(2000),
            ejection_max: ms(3000),
            ejected_percent_max: 100,
            panic_percent: 0,
            retry_after_max: Duration::ZERO,
        }),
        balance: Balance {
            algorithm: Algorithm::PeakEwma,
            slow_start: Some(SlowStart { window: ms(30_000), aggression: 0.5, share_min: 0.25 }),
        },
        connect_timeout: Some(ms(300)),
    };
    assert_eq!(policy.settings.as_deref(), Ok(&expected));
}

#[test]
fn what_is_not_said_is_the_models_default() {
    let silent = ServiceTraffic { origin: Some("shop/web".into()), ..ServiceTraffic::default() };
    for fields in [
        "timeouts: {}",
        "circuitBreaker: {}",
        "circuitBreaker: {service: {}, endpoint: {}}",
        "loadBalancing: {}",
        "retryBudget: {}",
    ] {
        assert_eq!(settings(fields), silent, "{fields}");
    }
    assert_eq!(retries(""), RetryPolicy::default());
    assert_eq!(settings("outlierDetection: {}").outlier, Some(OutlierSettings::default()));
    assert_eq!(settings("outlierDetection: {successRate: {}}").outlier, Some(OutlierSettings::default()));
    assert_eq!(settings("outlierDetection: {successRate: {disabled: true}}").outlier.unwrap().success_rate, None);
    let slow = settings("loadBalancing: {slowStart: {window: 1m}}").balance;
    assert_eq!(slow, Balance { algorithm: Algorithm::LeastRequest, slow_start: Some(SlowStart::over(ms(60_000))) });
    let (_, invalid, warnings) = policy(SERVICE);
    assert_eq!((invalid, warnings.len()), (vec![], 1));
}

#[test]
fn retries_table() {
    let default = RetryPolicy::default();
    assert_eq!(retries("attempts: 0").retries_max, 0);
    let nothing = retries("retryOn: [], statuses: []");
    assert_eq!((nothing.idempotent, nothing.other), (Conditions::default(), Conditions::default()));
    let all = retries("retryNonIdempotent: true, grpcCodes: [INTERNAL], headers: [a, A]");
    assert_eq!(all.other.grpc_codes, GrpcCodes::from_iter([13]));
    assert_eq!(all.other, Conditions { grpc_codes: all.other.grpc_codes, ..all.idempotent.clone() });
    assert_eq!((all.idempotent.headers.len(), all.idempotent.statuses), (1, default.idempotent.statuses));
    let only = retries("retryNonIdempotent: false, retryOn: [RefusedStream, PerTryTimeout]");
    assert_eq!(only.other, Conditions { refused_stream: true, ..Conditions::default() });
    assert!(only.idempotent.per_try_timeout && !only.idempotent.connect_failure);
    assert_eq!(retries("backoff: {base: 1s}").backoff, Backoff { least: ms(0), base: ms(1000), max: ms(1000) });
    assert_eq!(retries("backoff: {base: 1ms}").backoff, Backoff { base: ms(1), ..default.backoff });
    assert_eq!(retries("backoff: {min: 2s}").backoff, Backoff { least: ms(2000), ..default.backoff });
    assert_eq!(retries("waitMax: 0s").wait_max, Duration::ZERO);
}

/// What a policy for a route does not say is as the Service's says, field by field.
#[test]
fn retries_of_a_route_leave_the_rest_to_the_service() {
    let of = |fields: &str| settings(&format!("retries: {{{fields}}}")).request;
    let merged = |route: &str, service: &str| RetryPolicy::clone(of(route).or(&of(service)).retry.as_ref().unwrap());
    let service =
        "attempts: 4, statuses: [429], grpcCodes: [ABORTED], perTryTimeout: 1s, backoff: {base: 5ms, max: 6ms}";
    for (route, fields) in [
        ("", ""),
        ("attempts: 0", "attempts: 0"),
        ("statuses: []", "statuses: []"),
        ("retryOn: [], retryNonIdempotent: true", "retryOn: [], retryNonIdempotent: true"),
        ("backoff: {min: 1s}", "backoff: {base: 5ms, max: 6ms, min: 1s}"),
        ("grpcCodes: [UNAVAILABLE], headers: [a], waitMax: 0s", "grpcCodes: [UNAVAILABLE], headers: [a], waitMax: 0s"),
    ] {
        let names: Vec<&str> = fields.split(", ").filter_map(|field| field.split(':').next()).collect();
        let mut rest = service.to_owned();
        for (name, text) in [
            ("attempts", "attempts: 4, "),
            ("statuses", "statuses: [429], "),
            ("grpcCodes", "grpcCodes: [ABORTED], "),
            ("backoff", ", backoff: {base: 5ms, max: 6ms}"),
        ] {
            if names.contains(&name) {
                rest = rest.replace(text, "");
            }
        }
        let whole = if fields.is_empty() { rest } else { format!("{rest}, {fields}") };
        assert_eq!(Some(merged(route, service)), of(&whole).retry.as_deref().cloned(), "{route}");
    }
}

#[test]
fn a_limit_of_zero_is_said_to_be_none() {
    let timeouts = settings("timeouts: {request: 0s, backendRequest: 0s, idle: 0s, stream: 0s}").request.timeouts;
    let never = Some(NEVER);
    assert_eq!(timeouts, Timeouts { request: never, backend_request: never, idle: never, stream: never });
    assert_eq!(settings("timeouts: {request: 1s, backendRequest: 0s}").request.timeouts.backend_request, never);
}

#[test]
fn routes_and_their_rules_are_targets() {
    let (policy, invalid, _) = policy(
        "targetRefs: [{kind: HTTPRoute, name: a.b}, {group: gateway.networking.k8s.io, kind: GRPCRoute, name: c, sectionName: d}, \
         {kind: Service, name: e}], retries: {}, timeouts: {request: 1s, backendRequest: 1s, idle: 1s, stream: 1s}, \
         faults: {abort: {httpStatus: 503}}",
    );
    assert_eq!(invalid, Vec::<String>::new());
    let route = |kind, name: &str| RouteKey { kind, namespace: "shop".into(), name: name.into() };
    let expected = [
        TrafficTarget::Route { route: route(RouteKind::Http, "a.b"), rule: None },
        TrafficTarget::Route { route: route(RouteKind::Grpc, "c"), rule: Some("d".into()) },
        TrafficTarget::Service(("shop".into(), "e".into())),
    ];
    assert_eq!(*policy.targets, expected);
    let faults = policy.settings.as_ref().unwrap().request.faults.clone().unwrap();
    assert_eq!((faults.abort, faults.delay), (Some((Share::ALL, Abort::Http(503))), None));
}

/// `spec` beside a target, the field that is refused, and part of why.
#[test]
fn refused_table() {
    let s = |fields: &str| format!("{SERVICE}, {fields}");
    let r = |fields: &str| format!("{ROUTE}, {fields}");
    let target = |fields: &str| format!("targetRefs: [{{{fields}}}], retries: {{}}");
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let table = [
        (s("retires: {}"), "retires", "unknown field"),
        (s("retries: 3"), "retries", "must be a mapping"),
        (s("retries: ~"), "retries", "has no value"),
        (s("retries: {attempts: -1}"), "retries.attempts", "out of range: 0 to 10"),
        (s("retries: {attempts: 11}"), "retries.attempts", "out of range: 0 to 10"),
        (s("retries: {attempts: '2'}"), "retries.attempts", "whole number"),
        (s("retries: {attempts: 1.5}"), "retries.attempts", "whole number"),
        (s("retries: {attempts: null}"), "retries.attempts", "has no value"),
        (s("retries: {numRetries: 2}"), "retries.numRetries", "unknown field"),
        (s("retries: {perTryTimeout: 0s}"), "retries.perTryTimeout", "no time at all"),
        (s("retries: {perTryTimeout: 1}"), "retries.perTryTimeout", "must be text"),
        (s("retries: {perTryTimeout: 1.5s}"), "retries.perTryTimeout", "no duration"),
        (s("retries: {backoff: 1s}"), "retries.backoff", "must be a mapping"),
        (s("retries: {backoff: {base: 0ms}}"), "retries.backoff.base", "no time at all"),
        (s("retries: {backoff: {base: 2s, max: 1s}}"), "retries.backoff.max", "1s is less than `base`, 2s"),
        (s("retries: {backoff: {max: 10ms}}"), "retries.backoff.max", "10ms is less than `base`, 25ms"),
        (s("retries: {backoff: {jitter: true}}"), "retries.backoff.jitter", "unknown field"),
        (s("retries: {retryOn: ConnectFailure}"), "retries.retryOn", "must be a list"),
        (s("retries: {retryOn: [connect-failure]}"), "retries.retryOn[0]", "is unknown"),
        (s(&format!("retries: {{retryOn: [{}]}}", many("ConnectFailure", 5))), "retries.retryOn", "5 entries"),
        (s("retries: {statuses: [200]}"), "retries.statuses[0]", "400 to 599"),
        (s("retries: {statuses: [502, 600]}"), "retries.statuses[1]", "400 to 599"),
        (s("retries: {statuses: [5xx]}"), "retries.statuses[0]", "whole number"),
        (s(&format!("retries: {{statuses: [{}]}}", many("500", 201))), "retries.statuses", "201 entries"),
        (s("retries: {grpcCodes: [OK]}"), "retries.grpcCodes[0]", "is unknown"),
        (s("retries: {grpcCodes: [unavailable]}"), "retries.grpcCodes[0]", "is unknown"),
        (s("retries: {grpcCodes: [14]}"), "retries.grpcCodes[0]", "must be text"),
        (s(&format!("retries: {{grpcCodes: [{}]}}", many("ABORTED", 17))), "retries.grpcCodes", "17 entries"),
        (s("retries: {headers: ['a b']}"), "retries.headers[0]", "no name of a header field"),
        (s(&format!("retries: {{headers: [{}]}}", many("a", 17))), "retries.headers", "17 entries"),
        (s("retries: {retryNonIdempotent: 'yes'}"), "retries.retryNonIdempotent", "true or false"),
        (s("retries: {waitMax: forever}"), "retries.waitMax", "no duration"),
        (s("retryBudget: {percent: 101}"), "retryBudget.percent", "out of range: 0 to 100"),
        (s("retryBudget: {percent: -1}"), "retryBudget.percent", "out of range"),
        (s("retryBudget: {minPerSecond: 10001}"), "retryBudget.minPerSecond", "out of range"),
        (s("retryBudget: {ttl: 10s}"), "retryBudget.ttl", "unknown field"),
        (s("timeouts: {request: 1}"), "timeouts.request", "must be text"),
        (s("timeouts: {request: -1s}"), "timeouts.request", "no duration"),
        (s("timeouts: {backendRequest: 1d}"), "timeouts.backendRequest", "no duration"),
        (s("timeouts: {idle: ''}"), "timeouts.idle", "no duration"),
        (s("timeouts: {stream: 100000s}"), "timeouts.stream", "no duration"),
        (s("timeouts: {request: 1s, backendRequest: 1001ms}"), "timeouts.backendRequest", "longer than `request`"),
        (s("timeouts: {connect: 0s}"), "timeouts.connect", "no time at all"),
        (s("timeouts: {tcp: 1s}"), "timeouts.tcp", "unknown field"),
        (s("circuitBreaker: {requests: 1}"), "circuitBreaker.requests", "unknown field"),
        (s("circuitBreaker: {service: {connections: 0}}"), "circuitBreaker.service.connections", "out of range: 1 to"),
        (s("circuitBreaker: {service: {pending: 0}}"), "circuitBreaker.service.pending", "out of range: 1 to"),
        (s("circuitBreaker: {endpoint: {requests: 0}}"), "circuitBreaker.endpoint.requests", "out of range: 1 to"),
        (s("circuitBreaker: {endpoint: {requests: 1000001}}"), "circuitBreaker.endpoint.requests", "out of range"),
        (s("circuitBreaker: {endpoint: {retries: -1}}"), "circuitBreaker.endpoint.retries", "out of range: 0 to"),
        (s("circuitBreaker: {endpoint: {maxRetries: 1}}"), "circuitBreaker.endpoint.maxRetries", "unknown field"),
        (s("outlierDetection: {consecutive5xx: -1}"), "outlierDetection.consecutive5xx", "out of range"),
        (
            s("outlierDetection: {consecutiveGatewayErrors: 1000001}"),
            "outlierDetection.consecutiveGatewayErrors",
            "out of range",
        ),
        (
            s("outlierDetection: {consecutiveLocalErrors: -5}"),
            "outlierDetection.consecutiveLocalErrors",
            "out of range",
        ),
        (s("outlierDetection: {consecutive5Xx: 1}"), "outlierDetection.consecutive5Xx", "unknown field"),
        (s("outlierDetection: {interval: 0s}"), "outlierDetection.interval", "no time at all"),
        (s("outlierDetection: {baseEjection: 0s}"), "outlierDetection.baseEjection", "no time at all"),
        (
            s("outlierDetection: {baseEjection: 10s, maxEjection: 9s}"),
            "outlierDetection.maxEjection",
            "9s is less than `baseEjection`, 10s",
        ),
        (s("outlierDetection: {maxEjectedPercent: 101}"), "outlierDetection.maxEjectedPercent", "out of range"),
        (s("outlierDetection: {panicPercent: -1}"), "outlierDetection.panicPercent", "out of range"),
        (s("outlierDetection: {maxRetryAfter: 1w}"), "outlierDetection.maxRetryAfter", "no duration"),
        (s("outlierDetection: {successRate: true}"), "outlierDetection.successRate", "must be a mapping"),
        (
            s("outlierDetection: {successRate: {disabled: true, minHosts: 5}}"),
            "outlierDetection.successRate.disabled",
            "one or the other",
        ),
        (
            s("outlierDetection: {successRate: {minHosts: 1}}"),
            "outlierDetection.successRate.minHosts",
            "out of range: 2 to",
        ),
        (
            s("outlierDetection: {successRate: {minRequests: 0}}"),
            "outlierDetection.successRate.minRequests",
            "out of range: 1 to",
        ),
        (
            s("outlierDetection: {successRate: {stdevFactor: 0}}"),
            "outlierDetection.successRate.stdevFactor",
            "out of range",
        ),
        (
            s("outlierDetection: {successRate: {stdevFactor: 1900}}"),
            "outlierDetection.successRate.stdevFactor",
            "out of range",
        ),
        (
            s("outlierDetection: {successRate: {stdevFactor: '1.9'}}"),
            "outlierDetection.successRate.stdevFactor",
            "must be a number",
        ),
        (s("loadBalancing: {algorithm: RingHash}"), "loadBalancing.algorithm", "`RingHash` is unknown"),
        (s("loadBalancing: {algorithm: LEAST_REQUEST}"), "loadBalancing.algorithm", "is unknown"),
        (s("loadBalancing: {slowStart: {}}"), "loadBalancing.slowStart.window", "is missing"),
        (s("loadBalancing: {slowStart: {window: 0s}}"), "loadBalancing.slowStart.window", "no time at all"),
        (
            s("loadBalancing: {slowStart: {window: 1s, aggression: 0}}"),
            "loadBalancing.slowStart.aggression",
            "out of range",
        ),
        (
            s("loadBalancing: {slowStart: {window: 1s, aggression: 11}}"),
            "loadBalancing.slowStart.aggression",
            "out of range",
        ),
        (
            s("loadBalancing: {slowStart: {window: 1s, minShare: 1.5}}"),
            "loadBalancing.slowStart.minShare",
            "out of range",
        ),
        (s("loadBalancing: {consistentHash: {}}"), "loadBalancing.consistentHash", "unknown field"),
        (s("faults: {}"), "faults", "does nothing"),
        (s("faults: {headers: [{name: a, exact: b}]}"), "faults", "does nothing"),
        (s("faults: {headers: [], abort: {httpStatus: 500}}"), "faults.headers", "is empty"),
        (s("faults: {headers: null, abort: {httpStatus: 500}}"), "faults.headers", "has no value"),
        (s("faults: {headers: [{name: a}], abort: {httpStatus: 500}}"), "faults.headers[0]", "exactly one"),
        (
            s("faults: {headers: [{name: a, exact: b, regex: c}], abort: {httpStatus: 500}}"),
            "faults.headers[0]",
            "exactly one",
        ),
        (s("faults: {headers: [{exact: b}], abort: {httpStatus: 500}}"), "faults.headers[0]", "missing field `name`"),
        (
            s("faults: {headers: [{name: 'a b', exact: b}], abort: {httpStatus: 500}}"),
            "faults.headers[0].name",
            "no name of a header field",
        ),
        (
            s("faults: {headers: [{name: a, regex: '('}], abort: {httpStatus: 500}}"),
            "faults.headers[0].regex",
            "not a regular expression",
        ),
        (
            s(&format!("faults: {{headers: [{}], abort: {{httpStatus: 500}}}}", many("{name: a, exact: b}", 17))),
            "faults.headers",
            "17 entries",
        ),
        (s("faults: {abort: {}}"), "faults.abort", "exactly one of"),
        (s("faults: {abort: {httpStatus: 500, grpcStatus: ABORTED}}"), "faults.abort", "exactly one of"),
        (s("faults: {abort: {httpStatus: 199}}"), "faults.abort.httpStatus", "out of range: 200 to 599"),
        (s("faults: {abort: {httpStatus: 600}}"), "faults.abort.httpStatus", "out of range: 200 to 599"),
        (s("faults: {abort: {grpcStatus: OK}}"), "faults.abort.grpcStatus", "is unknown"),
        (s("faults: {abort: {percent: 101, httpStatus: 500}}"), "faults.abort.percent", "out of range"),
        (s("faults: {abort: {percent: 0.5, httpStatus: 500}}"), "faults.abort.percent", "whole number"),
        (
            s("faults: {abort: {percent: 1, fraction: {numerator: 1}, httpStatus: 500}}"),
            "faults.abort.fraction",
            "one or the other",
        ),
        (s("faults: {abort: {fraction: {}, httpStatus: 500}}"), "faults.abort.fraction.numerator", "is missing"),
        (
            s("faults: {abort: {fraction: {numerator: 101}, httpStatus: 500}}"),
            "faults.abort.fraction.numerator",
            "more than",
        ),
        (
            s("faults: {abort: {fraction: {numerator: 1, denominator: 0}, httpStatus: 500}}"),
            "faults.abort.fraction.denominator",
            "out of range",
        ),
        (s("faults: {delay: {}}"), "faults.delay.duration", "is missing"),
        (s("faults: {delay: {duration: 0s}}"), "faults.delay.duration", "no time at all"),
        (s("faults: {delay: {duration: 61m}}"), "faults.delay.duration", "longer than an hour"),
        (s("faults: {delay: {fixedDelay: 1s}}"), "faults.delay.fixedDelay", "unknown field"),
        // What is of Services, for a route.
        (r("retryBudget: {}"), "retryBudget", "is of Services"),
        (r("timeouts: {connect: 1s}"), "timeouts.connect", "is of Services"),
        (r("circuitBreaker: {}"), "circuitBreaker", "is of Services"),
        (r("outlierDetection: {}"), "outlierDetection", "is of Services"),
        (r("loadBalancing: {}"), "loadBalancing", "is of Services"),
        // Targets.
        ("retries: {}".into(), "targetRefs", "names nothing"),
        ("targetRefs: [], retries: {}".into(), "targetRefs", "names nothing"),
        (target("kind: Pod, name: a"), "targetRefs[0].kind", "`Pod` is unknown"),
        (target("kind: TCPRoute, name: a"), "targetRefs[0].kind", "`TCPRoute` is unknown"),
        (target("kind: Service"), "targetRefs[0]", "missing field `name`"),
        (target("name: a"), "targetRefs[0]", "missing field `kind`"),
        (target("kind: Service, name: A"), "targetRefs[0].name", "no name of one"),
        (target("kind: Service, name: a.b"), "targetRefs[0].name", "no name of one"),
        (target("kind: Service, name: a, namespace: b"), "targetRefs[0].namespace", "unknown field"),
        (target("kind: Service, name: a, sectionName: http"), "targetRefs[0].sectionName", "is of routes"),
        (target("kind: HTTPRoute, name: a, sectionName: A"), "targetRefs[0].sectionName", "no name of a rule"),
        (target("group: apps, kind: Service, name: a"), "targetRefs[0].group", "not the group of the kind"),
        (target("group: '', kind: HTTPRoute, name: a"), "targetRefs[0].group", "not the group of the kind"),
        (
            "targetRefs: [{kind: Service, name: a}, {kind: Service, name: a}], retries: {}".into(),
            "targetRefs[1]",
            "named already",
        ),
        (
            format!(
                "targetRefs: [{}], retries: {{}}",
                (0..17).map(|i| format!("{{kind: Service, name: a{i}}}")).collect::<Vec<_>>().join(", ")
            ),
            "targetRefs",
            "17 entries",
        ),
    ];
    for (text, field, message) in &table {
        let (policy, invalid, _) = policy(text);
        let at = format!("spec.{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        assert_eq!(policy.settings.as_ref().map_err(|why| &**why), Err(&*invalid[0]), "{text}");
    }
    assert!(table.len() > 110, "{}", table.len());
}

#[test]
fn of_a_rejected_policy_the_targets_are_left() {
    let service = |name: &str| TrafficTarget::Service(("shop".into(), name.into()));
    let table = [
        (format!("{SERVICE}, retires: {{}}"), vec![service("web")]),
        (format!("{SERVICE}, retries: 1"), vec![service("web")]),
        (
            "targetRefs: [{kind: Service, name: a}, {kind: Pod, name: b}, {kind: Service, name: c}], retries: {}"
                .into(),
            vec![service("a"), service("c")],
        ),
        ("targetRefs: [{kind: Service, name: a}, {kind: Service, nam: b}], retries: 1".into(), vec![service("a")]),
        ("targetRefs: {kind: Service, name: a}".into(), vec![]),
    ];
    for (text, targets) in table {
        let (policy, invalid, _) = policy(&text);
        assert_eq!((&*policy.targets, policy.settings.is_err()), (&targets[..], true), "{text}: {invalid:?}");
    }
    let broken = format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {SERVICE}\n  retries: {{\n"
    );
    let reading = read("f", broken.as_bytes());
    let [item] = &reading.items[..] else { panic!("{reading:?}") };
    let Object::TrafficPolicy(policy) = &item.object else { panic!("{reading:?}") };
    assert_eq!((reading.invalid.len(), &*policy.targets, policy.settings.is_err()), (1, &[service("web")][..], true));
    let other = broken.replace("v1alpha1", "v1").replace("retries: {\n", "retries: {}\n");
    let reading = read("f", other.as_bytes());
    assert!(reading.invalid.len() == 1 && &*reading.invalid[0].field == "apiVersion", "{reading:?}");
    for text in [
        "metadata: {name: web}\n",
        "metadata: {name: web, creationTimestamp: x}\nspec: {targetRefs: [{kind: Service, name: a}]}\n",
    ] {
        let reading = read("f", format!("apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\n{text}").as_bytes());
        let Object::TrafficPolicy(policy) = &reading.items[0].object else { panic!("{reading:?}") };
        assert!(policy.settings.is_err() && !reading.invalid.is_empty(), "{text}");
    }
}

/// What users copy must be right, and what is said of defaults true.
#[test]
fn the_examples_in_the_documentation_are_accepted() {
    let text = include_str!("../../../docs/traffic-policy.md");
    let examples = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut policies = Vec::new();
    for example in examples {
        let reading = read("traffic-policy.md", example.as_bytes());
        assert_eq!((reading.invalid, reading.warnings), (vec![], vec![]), "{example}");
        policies.extend(reading.items.into_iter().map(|item| item.object));
    }
    assert_eq!(policies.len(), 4);
    // The last writes all defaults out.
    let Some(Object::TrafficPolicy(last)) = policies.last() else { panic!("{policies:?}") };
    let mut last = ServiceTraffic::clone(last.settings.as_ref().unwrap());
    let retry = last.request.retry.take().as_deref().cloned().map(|retry| RetryPolicy { said: None, ..retry });
    assert_eq!(retry, Some(RetryPolicy::default()));
    assert_eq!(last.outlier.take(), Some(OutlierSettings::default()));
    assert_eq!(last, ServiceTraffic { origin: last.origin.clone(), ..ServiceTraffic::default() });
}
