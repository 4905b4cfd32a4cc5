//! Whether what the client got, what the origin understood and what the agents logged is what a case expects.

#![allow(dead_code, reason = "each suite uses its part")]

use std::collections::HashMap;

use serde_json::Value;

use super::case::{After, Answer, Case, Seen};
use super::stage::{text, unhex};

/// What is known of a run against one origin.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// The word the origin's honest answers begin with.
    pub origin: &'a str,
    /// The client's account, by case.
    pub client: &'a HashMap<String, Value>,
    /// The origin's, by port.
    pub origin_log: &'a HashMap<u64, Vec<Value>>,
    /// Access records of all agents, by the port called.
    pub access_log: &'a HashMap<u64, Vec<Value>>,
    /// The agent that finds a server's fault is the client's own: its word reaches the client.
    pub one_agent: bool,
}

impl Evidence<'_> {
    /// What is wrong, a line each.
    pub fn judge(&self, case: &Case) -> Vec<String> {
        let mut faults =
            Faults { case: format!("{} [{}] ({})", case.name, self.origin, case.citation), found: Vec::new() };
        let Some(told) = self.client.get(&case.name) else {
            faults.add("the client told nothing".to_owned());
            return faults.found;
        };
        if let Some(error) = told["error"].as_str() {
            faults.add(format!("the client failed: {error}"));
            return faults.found;
        }
        let log = self.origin_log.get(&u64::from(case.port)).map_or(&[][..], Vec::as_slice);
        self.judge_client(case, told, log, &mut faults);
        let honest = format!("/honest-{}", case.name);
        faults.found.extend(judge_origin(&faults.case, &case.saw, &honest, case.partly, log));
        faults.found
    }

    fn judge_client(&self, case: &Case, told: &Value, log: &[Value], faults: &mut Faults) {
        let empty = Vec::new();
        let responses = told["responses"].as_array().unwrap_or(&empty);
        faults.equal("responses", &responses.len(), &case.answers.len());
        let mut whole = log.iter().filter(|e| e["event"] == "request");
        for (response, answer) in responses.iter().zip(&case.answers) {
            let seen = whole.next();
            self.judge_answer(case, response, answer, seen, faults);
        }
        faults.equal("tunnelled bytes", &unhex(text(&told["raw"])), &case.tunnelled);
        let state = text(&told["state"]);
        let is_right = match case.after {
            After::Kept => state == "open",
            After::Closed => state == "closed",
            After::Reset => state == "reset",
            After::Gone => matches!(state, "closed" | "reset"),
            After::Any => true,
        };
        faults.check(is_right, || format!("the connection is {state}, not {:?}", case.after));
        faults.equal(
            "bytes nobody asked for",
            &String::from_utf8_lossy(&unhex(text(&told["extra"]))).into_owned(),
            &String::new(),
        );
        if let Some((least, most)) = case.took {
            let seconds = told["seconds"].as_f64().unwrap_or(0.0);
            faults.check((least..most).contains(&seconds), || format!("it took {seconds:.1} s, not {least} to {most}"));
        }
        let honest = &told["honest"];
        let body = unhex(text(&honest["body"]));
        let expected = format!("{} GET /honest-{} 0", self.origin, case.name);
        faults.check(honest["status"] == 200 && honest["complete"] == true && body == expected.as_bytes(), || {
            format!("the honest client got {} {:?}", honest["status"], String::from_utf8_lossy(&body))
        });
        faults.check(honest["extra"] == "", || "the honest client got more than its answer".to_owned());
    }

    fn judge_answer(&self, case: &Case, response: &Value, answer: &Answer, seen: Option<&Value>, faults: &mut Faults) {
        let status = response["status"].as_u64().unwrap_or(0);
        let body = unhex(text(&response["body"]));
        let (complete, end) = (response["complete"] == true, text(&response["end"]));
        match answer.cut {
            Some(false) => faults.check(complete, || format!("the response {status} is not complete: {end}")),
            Some(true) => faults.check(!complete && end == "reset", || format!("not cut by a reset: {complete} {end}")),
            None => {
                let is_told = if complete { status == 502 } else { end == "reset" };
                faults.check(is_told, || format!("neither 502 nor cut: {status} {complete} {end}"));
            }
        }
        let expected = answer.status.map(u64::from).or_else(|| seen?["status"].as_u64());
        if answer.cut.is_some() {
            faults.check(Some(status) == expected, || format!("status {status}, not {expected:?}"));
        }
        let field = |name: &str| {
            let fields = response["fields"].as_array().into_iter().flatten();
            fields.filter(|f| f[0] == name).map(|f| text(&f[1]).to_owned()).collect::<Vec<_>>()
        };
        let reason = field("x-heddle-reason");
        if let Some(word) = &answer.reason {
            faults.equal("x-heddle-reason", &reason, &vec![word.clone()]);
        } else if status == 502 && self.one_agent {
            faults.check(reason.len() == 1, || format!("x-heddle-reason is {reason:?}"));
        } else {
            // Nobody speaks in our name; what the server's agent said ends at the client's.
            faults.check(reason.is_empty(), || format!("x-heddle-reason is {reason:?}"));
        }
        if let Some(wanted) = &answer.body {
            let wanted = String::from_utf8_lossy(wanted).replacen('@', self.origin, 1);
            faults.equal("body", &String::from_utf8_lossy(&body).into_owned(), &wanted);
        }
        if let Some(wanted) = &answer.interim {
            let interim: Vec<u16> = serde_json::from_value(response["interim"].clone()).unwrap_or_default();
            faults.equal("interim", &interim, wanted);
        }
        let trailers: Vec<&str> = response["trailers"].as_array().into_iter().flatten().map(text).collect();
        faults.equal("trailers", &trailers.join("; "), &answer.trailers);
        let records = self.access_log.get(&u64::from(case.port)).map_or(&[][..], Vec::as_slice);
        if let Some(detail) = &answer.detail {
            let of_rule: Vec<&Value> = records.iter().filter(|r| r["detail"] == detail.as_str()).collect();
            let word = answer.reason.as_ref().or(reason.first().filter(|_| self.one_agent));
            let is_logged = of_rule.iter().any(|r| word.is_none_or(|word| r["reason"] == word.as_str()));
            faults.check(is_logged, || {
                let logged: Vec<_> = records.iter().map(|r| (text(&r["reason"]), text(&r["detail"]))).collect();
                format!("no access record says {detail} ({word:?}): {logged:?}")
            });
        }
    }
}

/// What is wrong with what an origin understood: all of `saw`, then the honest request that follows each case, and nothing else. `partly`: it
/// may have seen a part of a request more.
pub fn judge_origin(case: &str, saw: &[Seen], honest: &str, partly: bool, log: &[Value]) -> Vec<String> {
    let mut faults = Faults { case: case.to_owned(), found: Vec::new() };
    let whole: Vec<Seen> = log
        .iter()
        .filter(|e| e["event"] == "request")
        .map(|e| Seen {
            method: text(&e["method"]).to_owned(),
            target: text(&e["target"]).to_owned(),
            body: unhex(text(&e["body"])),
        })
        .collect();
    let honest = Seen { method: "GET".to_owned(), target: honest.to_owned(), body: Vec::new() };
    let wanted: Vec<Seen> = saw.iter().cloned().chain([honest]).collect();
    faults
        .check(whole == wanted, || format!("the origin saw\n      {}\n    not\n      {}", list(&whole), list(&wanted)));
    for event in log {
        match text(&event["event"]) {
            "request" => judge_framing(event, &mut faults),
            "incomplete" => faults.check(partly, || format!("the origin saw an unfinished request: {event}")),
            _ => faults.add(format!("the origin could not read: {event}")),
        }
    }
    faults.found
}

/// One framing, one host, nothing of ours: whatever the client sent.
fn judge_framing(event: &Value, faults: &mut Faults) {
    let count = |wanted: &str| {
        let fields = event["fields"].as_array().into_iter().flatten();
        fields.filter(|f| text(&f[0]).eq_ignore_ascii_case(wanted)).count()
    };
    let framing = count("content-length") + count("transfer-encoding");
    faults.check(framing <= 1, || format!("{framing} framing fields reached the origin: {event}"));
    faults.check(count("host") == 1, || format!("{} hosts reached the origin: {event}", count("host")));
    for name in ["x-heddle-reason", "x-heddle-attempt", "http2-settings", "keep-alive", "proxy-connection"] {
        faults.check(count(name) == 0, || format!("{name} reached the origin"));
    }
}

struct Faults {
    case: String,
    found: Vec<String>,
}

impl Faults {
    fn add(&mut self, fault: String) {
        self.found.push(format!("{}: {fault}", self.case));
    }

    fn check(&mut self, is_right: bool, fault: impl FnOnce() -> String) {
        if !is_right {
            self.add(fault());
        }
    }

    fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, is: &T, wanted: &T) {
        self.check(is == wanted, || format!("{what}: {is:?}, not {wanted:?}"));
    }
}

fn list(seen: &[Seen]) -> String {
    let one = |s: &Seen| {
        let target: String = s.target.chars().take(60).collect();
        format!("{} {target} {:?}", s.method, String::from_utf8_lossy(&s.body[..s.body.len().min(60)]))
    };
    seen.iter().map(one).collect::<Vec<_>>().join("\n      ")
}
