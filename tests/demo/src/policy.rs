//! The chapter about authorization: a call is denied, the mesh says why and what to edit, and the edit is in force while everybody talks on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::pki::spiffe_id;
use heddle_testkit::prelude::*;
use serde_json::Value;

use crate::account::Record;
use crate::apps::{self, Asking, WEB_PORT};
use crate::interrupt;
use crate::page::Page;
use crate::story::{Demo, ECHO_PORT, NAMESPACE};

/// Who is let in by the policy, and who is not at first.
const FRIEND: &str = "frontend";
const STRANGER: &str = "reports";
/// What the policy is for.
const SERVICE: &str = "web";
/// What everybody here asks it for; what the edit does not speak of.
pub const PATH: &str = "/item/1";
const OTHER_PATH: &str = "/item/2";
const FILE: &str = "policies.yaml";
/// How `heddle explain` says that a call is let in.
const REACHES: &str = "→ reaches the application";
/// What is promised of a change.
const LIVE_MAX: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(5);
/// Like answers in a row, after which neither pod of the Service is expected to answer otherwise.
const SURE: usize = 12;
/// Connections held open by each of the two.
const HELD: usize = 4;

/// One account may ask for one kind of path, and nobody for anything else.
const WEB: &str = "\
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: boutique}
spec:
  targetRefs: [{kind: Service, name: web}]
  rules:
  - from: [{serviceAccounts: [frontend]}]
    to: [{paths: [{prefix: /item}]}]
";
/// The rule that is added to it.
const ADDED: &str = "  - from: [{serviceAccounts: [reports]}]
    to: [{paths: [{exact: /item/1}]}]
";
/// For a Service that speaks no HTTP.
const DB: &str = "\
apiVersion: heddle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: db, namespace: boutique}
spec: {targetRefs: [{kind: Service, name: db}], rules: [{from: [{serviceAccounts: [frontend]}]}]}
";

/// The chapter.
pub fn tell(demo: &Demo, page: &mut Page) -> Result<()> {
    page.chapter("Who may call what: a denied call, why, and the edit that allows it, live");
    let web = demo.service(SERVICE, 80);
    denied(demo, page, web)?;
    explained(demo, page)?;
    interrupt::check()?;
    edited(demo, page, web)?;
    interrupt::check()?;
    closed(demo, page)?;
    counted(demo, page)
}

fn denied(demo: &Demo, page: &Page, web: SocketAddr) -> Result<()> {
    let (friend, stranger) = (demo.mesh.pod(FRIEND), demo.mesh.pod(STRANGER));
    for caller in [friend, stranger] {
        let answer = apps::curl_page(caller, web, PATH)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{} is refused without a policy: {answer}", caller.name());
    }
    page.remark(format!("a new file in the directory of objects, {FILE}:"));
    show(page, "+ ", WEB);
    demo.mesh.source().write_text(FILE, WEB)?;
    let written = Instant::now();
    let answer = wait_for(&format!("{STRANGER} is denied"), SOON, || {
        let answer = apps::curl_page(stranger, web, PATH)?;
        Ok(answer.starts_with("HTTP/1.1 403 ").then_some(answer))
    })?;
    page.say(format!("{STRANGER}$ curl -i http://{}{PATH}    # {} ms later", web.ip(), written.elapsed().as_millis()));
    show(page, "  ", &answer);
    let is_wanted = |record: Record<'_>| !record.is_at_source() && record.number("status") == 403;
    let logged = wait_for("the access record of the denied call", SOON, || {
        Ok(records(demo).into_iter().find(|value| is_wanted(Record(value))))
    })?;
    let record = Record(&logged);
    let fields = ["node", "source_principal", "method", "path", "reason", "policy"];
    page.remark("from the access record of the agent that denied it:");
    page.table(&[fields.map(str::to_owned).to_vec(), fields.map(|field| record.text(field).to_owned()).to_vec()]);
    let told = apps::header(&answer, "x-heddle-reason").unwrap_or_default();
    page.verdict(
        told == "policy_denied"
            && record.text("reason") == told
            && record.text("policy").starts_with("no Allow rule matches")
            && record.text("source_principal") == spiffe_id(NAMESPACE, STRANGER),
        format!("{told} in the header and in the record, which names the caller by its account"),
    );
    // Both are asked from here on, and each is judged by the agent of its own node.
    let pods = ["web-1", "web-2"];
    let is_denied = |pod: &str| {
        let answer = apps::curl_page(stranger, demo.pod(pod, WEB_PORT), PATH);
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 403 "))
    };
    let is_everywhere = wait_until("both agents deny it", SOON, || pods.iter().all(|pod| is_denied(pod)));
    page.verdict(
        is_everywhere.is_ok(),
        "the same at the pods' own addresses, web-1 on the other node and web-2 on its own",
    );
    Ok(())
}

fn explained(demo: &Demo, page: &Page) -> Result<()> {
    let (command, answer) = explain(demo)?;
    page.remark(&command);
    show(page, "  ", &answer);
    let told = [
        "policy_denied (HTTP 403)",
        "rule 0 does not match (from.serviceAccounts)",
        "edit AuthorizationPolicy boutique/web",
    ];
    page.verdict(
        told.iter().all(|words| answer.contains(words)) && !answer.contains(REACHES),
        "explained by the functions that decided: the same 403, the rule that did not match, the object to edit",
    );
    Ok(())
}

/// `heddle explain` for the stranger's call as it is called on his node, and what it says.
fn explain(demo: &Demo) -> Result<(String, String)> {
    let (from, to) = (format!("{NAMESPACE}/{STRANGER}"), format!("{SERVICE}.{NAMESPACE}:80"));
    let words = ["explain", &from, &to, "--path", PATH];
    let command = format!("heddle {}", words.join(" "));
    let answer = demo.mesh.node_of(demo.mesh.pod(STRANGER)).heddle(&words)?;
    ensure!(answer.status.success(), "{command}: {}", answer.stderr);
    Ok((command, answer.stdout))
}

fn edited(demo: &Demo, page: &Page, web: SocketAddr) -> Result<()> {
    let others = apps::ask(demo.mesh.pod(FRIEND), web, PATH)?;
    let same = apps::ask(demo.mesh.pod(STRANGER), web, PATH)?;
    wait_answered(&others, FRIEND, 200)?;
    wait_answered(&same, STRANGER, 403)?;
    page.remark(format!("the edit, one rule more in {FILE}, while both call web again and again:"));
    show(page, "+ ", ADDED);
    let edited = apps::now();
    demo.mesh.source().write_text(FILE, &format!("{WEB}{ADDED}"))?;
    wait_answered(&same, STRANGER, 200)?;
    let (same, others) = (same.finish()?, others.finish()?);
    let in_vain = same.iter().take_while(|answer| answer.status == 403).count();
    let took = same.get(in_vain).map_or(Duration::MAX, |answer| answer.at.saturating_sub(edited));
    page.verdict(
        // Once let in, it is let in by every agent.
        same[in_vain..].iter().all(|answer| answer.status == 200) && took < LIVE_MAX,
        format!(
            "{} ms after the edit the same call got 200: {STRANGER} called {in_vain} times in vain, then {} times with success",
            took.as_millis(),
            same.len() - in_vain,
        ),
    );
    let failed = others.iter().filter(|answer| answer.status != 200).count();
    page.verdict(failed == 0, format!("of {FRIEND}'s {} calls meanwhile {failed} failed", others.len()));
    let (command, answer) = explain(demo)?;
    page.verdict(
        answer.contains(REACHES) && !answer.contains("→ refused"),
        format!("{command}: it reaches the application now"),
    );
    let other_path = apps::curl_page(demo.mesh.pod(STRANGER), web, OTHER_PATH)?;
    page.verdict(
        other_path.starts_with("HTTP/1.1 403 "),
        format!("the rule is about {PATH} and no more: {OTHER_PATH} is 403 as before"),
    );
    Ok(())
}

/// Waits until the last answers are all of this status.
fn wait_answered(asking: &Asking, caller: &str, status: u16) -> Result<()> {
    let mut last = Vec::new();
    wait_until("like answers in a row", SOON, || {
        last = asking.answers().iter().rev().take(SURE).map(|answer| answer.status).collect();
        last.len() == SURE && last.iter().all(|answered| *answered == status)
    })
    .with_context(|| format!("{caller} should get {status} for {PATH} of {SERVICE}, the last answers were {last:?}"))
}

fn closed(demo: &Demo, page: &Page) -> Result<()> {
    let db = demo.service("db", ECHO_PORT);
    let db = dial(db.ip(), db.port());
    let [friend, stranger] = [FRIEND, STRANGER].map(|name| demo.mesh.pod(name));
    let (friends, strangers) = (friend.hold(&db, HELD as u64)?, stranger.hold(&db, HELD as u64)?);
    for held in [&friends, &strangers] {
        ensure!(held.ping()? == (HELD as u64, 0), "db does not answer without a policy\n{}", held.tail());
    }
    page.remark(format!(
        "and the other way round: both hold connections to db, {HELD} each, and it gets a policy too:"
    ));
    show(page, "+ ", DB);
    demo.mesh.source().write_text(FILE, &format!("{WEB}{ADDED}---\n{DB}"))?;
    let written = Instant::now();
    let ends = strangers
        .wait_ended(HELD, SOON)
        .with_context(|| format!("the connections of {STRANGER} to db are still open"))?;
    let took = written.elapsed();
    let of_stranger = |record: Record<'_>| {
        !record.is_at_source()
            && record.text("reason") == "policy_closed"
            && record.text("source_principal") == spiffe_id(NAMESPACE, STRANGER)
    };
    let mut logged = 0;
    let is_logged = wait_until("the access records of what was closed", SOON, || {
        logged = records(demo).iter().filter(|value| of_stranger(Record(value))).count();
        logged == HELD
    });
    page.verdict(
        took < LIVE_MAX && is_logged.is_ok() && ends.iter().all(|end| *end == End::Reset),
        format!(
            "{} ms later the {HELD} of {STRANGER} were reset; the log has {logged} policy_closed",
            took.as_millis()
        ),
    );
    page.verdict(friends.ping()? == (HELD as u64, 0), format!("the {HELD} of {FRIEND} carry bytes as before"));
    friends.close()?;
    let (let_in, refused) = (friend.connect(&db)?, stranger.connect(&db)?);
    page.verdict(
        let_in.summary.succeeded == 1 && refused.summary.failures.keys().eq(["reset"]),
        format!("new ones: {FRIEND} is let in, {STRANGER} is reset"),
    );
    Ok(())
}

fn counted(demo: &Demo, page: &Page) -> Result<()> {
    let node = demo.mesh.node("b");
    let (mut counted, mut logged) = ([0; 3], [0; 3]);
    // A record is written a moment after its decision was counted.
    let is_same = wait_until("log and counts agree", SOON, || {
        counted = counts(&node.json(&["policies"]).unwrap_or_default());
        logged = decided(&node.access_log());
        counted == logged
    });
    let answer = node.heddle(&["policies"])?;
    ensure!(answer.status.success(), "heddle policies on node {}: {}", node.name(), answer.stderr);
    page.remark(format!("heddle policies    # node {}, what its agent decided so far", node.name()));
    show(page, "  ", &answer.stdout);
    page.verdict(
        is_same.is_ok() && counted.iter().all(|count| *count > 0),
        match is_same {
            Ok(()) => "its access log says the same, counted by the policy it names".to_owned(),
            Err(_) => format!("web, db and no rule: {counted:?} counted, but {logged:?} in the access log"),
        },
    );
    Ok(())
}

/// What `heddle policies` counted: let in by web, let in by db, denied by no rule.
fn counts(policies: &Value) -> [u64; 3] {
    let allowed = |name: &str| {
        let policy = policies["policies"].as_array()?.iter().find(|policy| policy["name"] == name)?;
        policy["allowed"].as_u64()
    };
    let none = policies["denied_by_none"].as_u64();
    [allowed("web"), allowed("db"), none].map(Option::unwrap_or_default)
}

/// The same by the access records of an agent, at the called side.
fn decided(records: &[Value]) -> [u64; 3] {
    let named = |name: &str| {
        let of_name = |record: Record<'_>| !record.is_at_source() && record.text("policy").starts_with(name);
        records.iter().filter(|value| of_name(Record(value))).count() as u64
    };
    ["boutique/web[", "boutique/db[", "no Allow rule matches"].map(named)
}

fn records(demo: &Demo) -> Vec<Value> {
    demo.mesh_nodes().iter().flat_map(|node| node.access_log()).collect()
}

fn show(page: &Page, mark: &str, text: &str) {
    for line in text.lines() {
        page.say(format!("{mark}{}", line.trim_end()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_and_records_are_told_in_the_same_order() {
        let policies = json!({
            "policies": [{"name": "db", "allowed": 1}, {"name": "web", "allowed": 2, "denied": 7}],
            "denied_by_none": 3,
        });
        assert_eq!(counts(&policies), [2, 1, 3]);
        assert_eq!(counts(&Value::Null), [0, 0, 0]);
        let record = |policy: &str, reporter: &str| json!({"policy": policy, "reporter": reporter});
        let records = [
            record("boutique/web[0]", "destination"),
            record("boutique/web[1]", "destination"),
            record("boutique/webs[0]", "destination"),
            record("no Allow rule matches (boutique/web)", "destination"),
            record("boutique/web[0]", "source"),
            json!({"reporter": "destination"}),
        ];
        assert_eq!(decided(&records), [2, 0, 1]);
    }
}
