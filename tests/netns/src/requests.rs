//! Requests counted at both ends: servers that say who they are and fail when told to, clients that ask without a pause, and the objects
//! that say where requests lead.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::SOON;
use crate::peers::{PATIENCE, curl, script, serve};

/// A server that says who it is, `peers/origin.py`.
#[derive(Debug)]
pub struct Origin {
    process: Process,
}

/// Starts a server that calls itself as its place is called.
///
/// # Errors
/// It does not come up.
pub fn origin(place: &Place, port: u16) -> Result<Origin> {
    let mut command = script("origin.py", &[])?;
    command.args([&port.to_string(), place.name()]);
    Ok(Origin { process: serve(place, "origin", command, &[port])? })
}

impl Origin {
    /// Of every `of` requests the first `count` get `status` from now on.
    ///
    /// # Errors
    /// It has ended.
    pub fn fails(&self, status: u16, count: u32, of: u32) -> Result<()> {
        order(&self.process, &format!("fail {status} {count} {of}")).map(drop)
    }

    /// No request fails any more.
    ///
    /// # Errors
    /// It has ended.
    pub fn works(&self) -> Result<()> {
        order(&self.process, "work").map(drop)
    }

    /// Stops listening, and resets every connection.
    ///
    /// # Errors
    /// It has ended.
    pub fn closes(&self) -> Result<()> {
        order(&self.process, "close").map(drop)
    }

    /// Listens again.
    ///
    /// # Errors
    /// It has ended.
    pub fn opens(&self) -> Result<()> {
        order(&self.process, "open").map(drop)
    }

    /// How many requests it got.
    ///
    /// # Errors
    /// It has ended.
    pub fn requests(&self) -> Result<usize> {
        let told = order(&self.process, "count")?;
        Ok(told["requests"].as_u64().with_context(|| told.to_string())? as usize)
    }

    /// The last requests it got: `method`, `path`, `status`, `fields`.
    ///
    /// # Errors
    /// It has ended.
    pub fn seen(&self) -> Result<Vec<Value>> {
        Ok(order(&self.process, "tell")?["last"].as_array().cloned().unwrap_or_default())
    }

    /// What it says, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        self.process.tail()
    }
}

/// Gives a program an order and waits for its line.
fn order(process: &Process, line: &str) -> Result<Value> {
    let lines = || {
        let text = process.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        whole.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let before = lines().len();
    process.send_line(line)?;
    let told =
        wait_for(&format!("{} answers {line}", process.name()), PATIENCE, || Ok(lines().into_iter().nth(before)))
            .with_context(|| process.tail())?;
    serde_json::from_str(&told).context(told)
}

/// Clients that ask without a pause, `peers/load.py`.
#[derive(Debug)]
pub struct Load {
    process: Process,
}

/// How requests went; see `peers/load.py`.
#[derive(Clone, Debug, Deserialize)]
pub struct Went {
    /// Requests since the mark.
    pub attempted: usize,
    /// Of them, how many answers each server gave.
    pub from: BTreeMap<String, usize>,
    /// Seconds from the mark until the last request began that this server answered.
    pub last: BTreeMap<String, f64>,
    /// Answers in a row by others than those that the mark names.
    pub streak: usize,
    /// Requests since the start that got anything but 200.
    pub failed: usize,
    /// Why, of the first.
    pub whys: Vec<String>,
}

/// Starts `connections` clients of `/` with together `per_second` requests; 0 is as many as go.
///
/// # Errors
/// They cannot be started.
pub fn load(from: &Place, to: SocketAddr, connections: u32, per_second: u32) -> Result<Load> {
    let mut command = script("load.py", &[])?;
    command.args([to.ip().to_string(), to.port().to_string(), connections.to_string(), per_second.to_string()]);
    Ok(Load { process: from.spawn("load", command)? })
}

impl Load {
    fn order(&self, line: &str) -> Result<Went> {
        let told = order(&self.process, line)?;
        Went::deserialize(&told).with_context(|| told.to_string())
    }

    /// Counts anew from now on; `former` are the servers that break a streak.
    ///
    /// # Errors
    /// It has ended.
    pub fn mark(&self, former: &[&str]) -> Result<()> {
        self.order(&format!("mark {}", former.join(" "))).map(drop)
    }

    /// How it went since the mark.
    ///
    /// # Errors
    /// It has ended.
    pub fn went(&self) -> Result<Went> {
        self.order("tell")
    }

    /// Waits until so many requests were answered since the mark.
    ///
    /// # Errors
    /// They were not in time.
    pub fn wait_answered(&self, count: usize) -> Result<Went> {
        self.wait(&format!("{count} answers"), |went| went.attempted >= count)
    }

    /// Waits until so many requests in a row were not answered by the former servers.
    ///
    /// # Errors
    /// They were not in time.
    pub fn wait_streak(&self, count: usize) -> Result<Went> {
        self.wait(&format!("{count} answers of others in a row"), |went| went.streak >= count)
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Went) -> bool) -> Result<Went> {
        let mut last = None;
        let looked = wait_for(what, PATIENCE, || {
            let went = self.went()?;
            last = Some(went.clone());
            Ok(is_so(&went).then_some(went))
        });
        looked.with_context(|| format!("{last:?}\n{}", self.process.tail()))
    }

    /// Begins no more, and tells how it went when all are over.
    ///
    /// # Errors
    /// It has ended.
    pub fn stop(self) -> Result<Went> {
        self.order("stop")
    }
}

impl Went {
    /// Answers of these servers together.
    #[must_use]
    pub fn of(&self, servers: &[&str]) -> usize {
        servers.iter().filter_map(|server| self.from.get(*server)).sum()
    }

    /// No request since the start has failed, and some were made.
    ///
    /// # Errors
    /// One has, or none was.
    pub fn assert_none_failed(&self) -> Result<()> {
        ensure!(self.failed == 0 && self.attempted > 0, "{} failed: {:#?}", self.failed, self);
        Ok(())
    }
}

/// What a client got.
#[derive(Clone, Debug)]
pub struct Got {
    /// The status of the response, the last one.
    pub status: u16,
    /// Its head.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Asks by curl, which gets these arguments as well.
///
/// # Errors
/// There is no response.
pub fn ask(from: &Place, to: SocketAddr, path: &str, arguments: &[&str]) -> Result<Got> {
    let url = format!("http://{to}{path}");
    let printed = curl(from, &[&["--include", "--path-as-is"][..], arguments, &[&url]].concat())?;
    let (head, body) = printed.split_once("\r\n\r\n").with_context(|| format!("no response: {printed:?}"))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).with_context(|| format!("no status: {head:?}"))?;
    Ok(Got { status, head: head.to_owned(), body: body.to_owned() })
}

/// Asks until the answer is as wanted.
///
/// # Errors
/// It is not in time; the error shows the last answer and the node's agent.
pub fn wait_got(
    mesh: &Mesh,
    from: &Pod,
    to: SocketAddr,
    path: &str,
    arguments: &[&str],
    wanted: impl Fn(&Got) -> bool,
) -> Result<Got> {
    let mut last = None;
    wait_for(&format!("{} gets what is wanted of {to}{path}", from.name()), SOON, || {
        let got = ask(from, to, path, arguments);
        let is_so = got.as_ref().is_ok_and(&wanted);
        last = Some(format!("{got:?}"));
        Ok(if is_so { got.ok() } else { None })
    })
    .with_context(|| format!("{}\n{}", last.unwrap_or_default(), mesh.node_of(from).agent_tail()))
}

impl Got {
    /// A field of its head; of one name the first.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim_end())
    }

    /// The mesh's word for why it answered itself, or nothing.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.field("x-heddle-reason").unwrap_or_default()
    }

    /// The server that answered, or nothing.
    #[must_use]
    pub fn origin(&self) -> &str {
        self.field("x-from").unwrap_or_default()
    }
}

/// A route of this kind in `shop` for a Service there.
#[must_use]
pub fn route(kind: &str, name: &str, service: &str, rules: Value) -> Value {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": service}], "rules": rules},
    })
}

/// References to Services by weight, at this port.
#[must_use]
pub fn backends(port: u16, weights: &[(&str, u32)]) -> Value {
    weights.iter().map(|(name, weight)| json!({"name": name, "port": port, "weight": weight})).collect()
}

/// A TrafficPolicy `shop/<service>` for the Service of that name.
#[must_use]
pub fn traffic(service: &str, mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "name": service}]);
    json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": service, "namespace": "shop"},
        "spec": spec,
    })
}
