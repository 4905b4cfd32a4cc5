//! HTTP/2 frame by frame, written with an independent stack (issue 3, demands 3 and 7): every case of `frames.txt` through two real agents to
//! an origin that uses Python's h2, which checks every header block it is sent.

#[path = "strictness/case.rs"]
mod case;
#[path = "../../../agent/http/tests/support/mod.rs"]
mod codec;
#[path = "strictness/judge.rs"]
mod judge;
#[path = "strictness/stage.rs"]
mod stage;

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use case::Seen;
use heddle_testkit::prelude::*;
use heddle_testkit::programs::python;
use serde_json::{Value, json};
use stage::{
    CONCURRENCY, PATIENCE_SECONDS, PORT_FIRST, access_log, address, finish_client, in_front_of, origin_log, peer,
    report, start_origin, text, unhex, write,
};

/// What becomes of a stream.
#[derive(Clone, Debug)]
struct Fate {
    stream: u32,
    /// Statuses that will do.
    statuses: Vec<u16>,
    /// Codes of a reset that will do.
    codes: Vec<String>,
    body: Option<Vec<u8>>,
    logged: Option<(String, String)>,
}

/// What becomes of the connection.
#[derive(Clone, Debug, Default)]
enum End {
    #[default]
    Unsaid,
    Kept,
    Goaway(Vec<String>),
    Ends,
}

#[derive(Clone, Debug, Default)]
struct Case {
    name: String,
    citation: String,
    port: u16,
    steps: Vec<String>,
    fates: Vec<Fate>,
    end: End,
    /// Reason and detail of access records.
    logged: Vec<(String, String)>,
    pong: bool,
    acked: Option<u64>,
    saw: Vec<Seen>,
    /// Seen first, or not at all.
    maybe: Option<Seen>,
    partly: bool,
}

impl Case {
    fn plan(&self, host: &str) -> Value {
        json!({
            "id": self.name, "host": host, "port": self.port, "steps": self.steps,
            "awaits": self.fates.iter().map(|f| f.stream).collect::<Vec<_>>(),
            "ends": matches!(self.end, End::Goaway(_) | End::Ends),
            "after": matches!(self.end, End::Kept),
        })
    }
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in include_str!("frames.txt").lines().enumerate() {
        if line.is_empty() || line.starts_with(";;") {
            continue;
        }
        let read = match line.strip_prefix("## ") {
            Some(title) => title.strip_suffix(')').and_then(|t| t.split_once(" (")).map(|(name, citation)| {
                let port = PORT_FIRST + u16::try_from(cases.len()).unwrap_or_default();
                cases.push(Case { name: name.to_owned(), citation: citation.to_owned(), port, ..Case::default() });
            }),
            None => cases.last_mut().and_then(|case| read_line(case, line)),
        };
        read.unwrap_or_else(|| panic!("frames.txt line {}: {line}", number + 1));
    }
    cases
}

fn read_line(case: &mut Case, line: &str) -> Option<()> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let codes = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
    match (word, rest) {
        ("->", step) => case.steps.push(step.to_owned()),
        ("<-", fate) => case.fates.push(read_fate(fate)?),
        ("goaway", list) => case.end = End::Goaway(codes(list)),
        ("ends", "") => case.end = End::Ends,
        ("kept", "") => {
            case.end = End::Kept;
        }
        ("logged", words) => case.logged.push(read_logged(words)?),
        ("pong", "") => case.pong = true,
        ("acked", count) => case.acked = Some(count.parse().ok()?),
        ("saw" | "maybe", seen) => {
            let mut words = seen.splitn(3, ' ');
            let (method, target, body) = (words.next()?, words.next()?, words.next()?);
            let body = codec::unescape(body.strip_prefix('"')?.strip_suffix('"')?);
            let seen = Seen { method: method.to_owned(), target: target.to_owned(), body };
            if word == "saw" { case.saw.push(seen) } else { case.maybe = Some(seen) }
        }
        ("partly", "") => case.partly = true,
        _ => return None,
    }
    Some(())
}

fn read_fate(text: &str) -> Option<Fate> {
    let mut words = text.split(' ');
    let stream = words.next()?.parse().ok()?;
    let mut fate = Fate { stream, statuses: Vec::new(), codes: Vec::new(), body: None, logged: None };
    let mut is_reset = false;
    for one in words.next()?.split('|') {
        match one {
            "RST" => is_reset = true,
            status => fate.statuses.push(status.parse().ok()?),
        }
    }
    let mut rest = text.splitn(3, ' ').nth(2).unwrap_or_default();
    if is_reset {
        let (codes, more) = rest.split_once(' ').unwrap_or((rest, ""));
        if codes.contains('=') {
            fate.codes.push("PROTOCOL_ERROR".to_owned());
        } else {
            fate.codes = codes.split('|').map(str::to_owned).collect();
            rest = more;
        }
    }
    if let Some(body) = rest.strip_prefix("body=\"") {
        fate.body = Some(codec::unescape(body.strip_suffix('"')?));
    } else if !rest.is_empty() {
        fate.logged = Some(read_logged(rest)?);
    }
    Some(fate)
}

fn read_logged(words: &str) -> Option<(String, String)> {
    let mut logged = (String::new(), String::new());
    for word in words.split(' ') {
        match word.split_once('=')? {
            ("reason", value) => logged.0 = value.to_owned(),
            ("detail", value) => logged.1 = value.to_owned(),
            _ => return None,
        }
    }
    Some(logged)
}

/// What is wrong with a case, a line each.
fn judge(case: &Case, told: Option<&Value>, origin: &[Value], access: &[Value]) -> Vec<String> {
    let title = format!("{} ({})", case.name, case.citation);
    let mut faults = Vec::new();
    let mut check = |is_right: bool, fault: String| {
        if !is_right {
            faults.push(format!("{title}: {fault}"));
        }
    };
    let Some(told) = told.filter(|t| t["error"].is_null()) else {
        return vec![format!("{title}: the client failed: {told:?}")];
    };
    let is_logged = |(reason, detail): &(String, String)| {
        access.iter().any(|r| text(&r["reason"]) == reason && (detail.is_empty() || text(&r["detail"]) == detail))
    };
    let logged = || access.iter().map(|r| (text(&r["reason"]), text(&r["detail"]))).collect::<Vec<_>>();
    for fate in &case.fates {
        let stream = &told["streams"][fate.stream.to_string()];
        let field = |name: &str| {
            let fields = stream["heads"][0].as_array().into_iter().flatten();
            fields.filter(|f| f[0] == name).map(|f| text(&f[1]).to_owned()).next()
        };
        let status = field(":status").and_then(|s| s.parse::<u16>().ok());
        let reset = stream["rst"].as_str();
        let is_right = match status {
            Some(status) => fate.statuses.contains(&status) && stream["ended"] == true,
            None => reset.is_some_and(|code| fate.codes.iter().any(|c| c == code)),
        };
        let end = (&told["goaway"], &told["end"]);
        check(is_right, format!("stream {} is {status:?} {reset:?} {end:?}, not {fate:?}", fate.stream));
        if let Some(body) = &fate.body {
            let got = unhex(text(&stream["body"]));
            check(got == *body, format!("body {:?}", String::from_utf8_lossy(&got)));
        }
        if let (Some(wanted), Some(_)) = (&fate.logged, status) {
            check(field("x-heddle-reason").as_ref() == Some(&wanted.0), "x-heddle-reason".to_owned());
            check(is_logged(wanted), format!("no record says {wanted:?}: {:?}", logged()));
        } else if status == Some(200) {
            check(field("x-heddle-reason").is_none(), "the origin speaks in our name".to_owned());
        }
    }
    match &case.end {
        End::Unsaid => {}
        End::Kept => {
            check(told["after"]["heads"][0][0][1] == "200", format!("not kept: {} {}", told["goaway"], told["end"]))
        }
        End::Goaway(codes) => check(
            codes.iter().any(|c| told["goaway"]["code"] == c.as_str()) && told["end"] != "",
            format!("no GOAWAY {codes:?}: {} {}", told["goaway"], told["end"]),
        ),
        End::Ends => check(told["end"] != "", format!("it does not end: {}", told["goaway"])),
    }
    check(!text(&told["end"]).starts_with("not understood"), format!("what came was {}", told["end"]));
    check(!case.pong || told["pings"].as_u64() > Some(0), "no answer to PING".to_owned());
    check(case.acked.is_none_or(|count| told["acks"] == count), format!("{} acknowledgements", told["acks"]));
    for wanted in &case.logged {
        check(is_logged(wanted), format!("no record says {wanted:?}: {:?}", logged()));
    }
    check(told["honest"]["heads"][0][0][1] == "200", format!("the honest client got {}", told["honest"]));
    let mut saw = case.saw.clone();
    if matches!(case.end, End::Kept) {
        saw.push(Seen { method: "GET".to_owned(), target: format!("/after-{}", case.name), body: Vec::new() });
    }
    let honest = format!("/honest-{}", case.name);
    let mut of_origin = judge::judge_origin(&title, &saw, &honest, case.partly, origin);
    if let (Some(maybe), false) = (&case.maybe, of_origin.is_empty()) {
        saw.insert(0, maybe.clone());
        of_origin = judge::judge_origin(&title, &saw, &honest, case.partly, origin);
    }
    faults.extend(of_origin);
    faults
}

#[test]
fn every_frame_has_its_answer() -> Result<()> {
    let cases = cases();
    ensure!(cases.len() >= 100, "{} cases", cases.len());
    let ports: Vec<u16> = cases.iter().map(|c| c.port).collect();
    let topology = Mesh::declare("h2_frames").node("a").pod("client").node("b").pod("h2").topology();
    let mesh = in_front_of(topology, "h2", &ports, Some("kubernetes.io/h2c")).start()?;
    let directory = mesh.node("a").paths().run.clone();
    let ports = write(&directory, "ports.json", &json!(ports))?;
    let origin = start_origin(mesh.pod("h2"), "h2_origin.py", &["h2"], &ports)?;
    let plan: Vec<Value> = cases.iter().map(|c| c.plan(&address(&mesh, "h2", c.port).to_string())).collect();
    let plan = write(&directory, "plan.json", &json!(plan))?;
    let started = Instant::now();
    let mut command = python(&["h2"])?;
    command.arg(peer("h2_client.py")).arg(&plan).args([CONCURRENCY.to_string(), PATIENCE_SECONDS.to_string()]);
    let told = finish_client(&mesh.pod("client").spawn("h2-client", command)?)?;
    let took = started.elapsed();
    let (origin, access) = (origin_log(&origin)?, access_log(&mesh, "h2"));
    let none = Vec::new();
    let of = |log: &HashMap<u64, Vec<Value>>, port: u16| log.get(&u64::from(port)).unwrap_or(&none).clone();
    let faults: Vec<String> =
        cases.iter().flat_map(|c| judge(c, told.get(&c.name), &of(&origin, c.port), &of(&access, c.port))).collect();
    report(&faults, cases.len(), took)
}
