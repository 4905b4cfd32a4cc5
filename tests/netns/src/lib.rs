//! What the suites share: how to tell from the kernel's own tables which way a connection goes, and how to find it in
//! the access log.
//!
//! The tables are evidence that no hook and no view of Heddle's can colour. In a pod's namespace a captured outbound
//! connection is one whose remote end is loopback port 15001; a captured inbound one is the agent's second leg, from
//! the pod's own address to the pod's own address.
#![forbid(unsafe_code)]

pub mod exposition;
pub mod peers;
pub mod requests;
pub mod secure_peers;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use serde_json::Value;

/// The agent's listener for outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// The agent's listener for inbound connections.
pub const INBOUND_PORT: u16 = 15006;
/// HBONE's port.
pub const HBONE_PORT: u16 = 15008;
/// A condition that ought to hold at once on an idle machine. Only a failing test waits so long: it is for a machine that
/// has other things to do.
pub const SOON: Duration = Duration::from_secs(10);

/// By which agents a connection is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// By the client's and the server's.
    BothSides,
    /// By the client's only.
    Outbound,
    /// By the server's only.
    Inbound,
    /// By none: straight from application to application.
    Direct,
}

impl Carried {
    fn sides(self) -> (bool, bool) {
        match self {
            Self::BothSides => (true, true),
            Self::Outbound => (true, false),
            Self::Inbound => (false, true),
            Self::Direct => (false, false),
        }
    }
}

/// Connections of applications in this place that go to its agent's outbound listener.
///
/// # Errors
/// The place's namespace cannot be entered.
pub fn captured_outbound(place: &Place) -> Result<usize> {
    let to_agent = |ip: IpAddr, port| ip.is_loopback() && port == OUTBOUND_PORT;
    let sockets = place.tcp_sockets()?;
    Ok(sockets.iter().filter(|s| s.established && to_agent(s.remote.ip(), s.remote.port())).count())
}

/// Connections to the application on `port` of this place that come from its own agent.
///
/// # Errors
/// The place's namespace cannot be entered.
pub fn captured_inbound(place: &Place, port: u16) -> Result<usize> {
    let own = |s: &&heddle_testkit::probe::TcpSocket| {
        s.established && s.local.port() == port && s.local.ip() == s.remote.ip() && !s.local.ip().is_loopback()
    };
    Ok(place.tcp_sockets()?.iter().filter(own).count())
}

/// Holds one connection and checks by which agents it is carried, from the tables of both namespaces, and that it
/// works; then closes it and waits until it is gone.
///
/// # Errors
/// It does not come up, goes another way, or does not carry.
pub fn assert_carried(client: &Place, server: &Place, dial: &Dial, target_port: u16, expected: Carried) -> Result<()> {
    let what = || format!("{} → {} by {dial:?} is to be carried by {expected:?}", client.name(), server.name());
    let before = (captured_outbound(client)?, captured_inbound(server, target_port)?);
    let held = client.hold(dial, 1)?;
    ensure!(held.opened()? == 1, "{}: it does not come up\n{}", what(), held.tail());
    let (outbound, inbound) = expected.sides();
    let wanted = (before.0 + usize::from(outbound), before.1 + usize::from(inbound));
    let now = (captured_outbound(client)?, captured_inbound(server, target_port)?);
    ensure!(now == wanted, "{}: outbound and inbound legs {now:?}, wanted {wanted:?}", what());
    ensure!(held.ping()? == (1, 0), "{}: it does not carry\n{}", what(), held.tail());
    held.close()?;
    wait_until(&format!("{}: legs end with the connection", what()), SOON, || {
        captured_outbound(client).is_ok_and(|n| n == before.0)
            && captured_inbound(server, target_port).is_ok_and(|n| n == before.1)
    })
}

/// Waits for a record of the node's access log that satisfies `wanted`.
///
/// # Errors
/// None in time; the error shows the log.
pub fn wait_logged(node: &Node, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for(&format!("access record of node {}: {what}", node.name()), SOON, || {
        Ok(node.access_log().into_iter().find(|r| wanted(r)))
    })
    .with_context(|| node.agent_tail())
}

/// Waits for a record with this reason.
///
/// # Errors
/// None in time; the error shows the log.
pub fn wait_reason(node: &Node, reason: &str) -> Result<Value> {
    wait_logged(node, &format!("reason {reason}"), |r| r["reason"] == reason)
}

/// `[v4, v6]` of a place.
#[must_use]
pub fn both_families(place: &Place) -> [IpAddr; 2] {
    [place.v4(), place.v6()]
}
