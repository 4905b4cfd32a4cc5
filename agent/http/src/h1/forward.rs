//! Making a message ours to pass on: what belongs to one connection ends here (RFC 9110 §7.6.1), everything else stays as it was.
//!
//! No `Via` and no `X-Forwarded-*` are added: the application must see the message its peer sent (DESIGN §1), and the true client's
//! address is on its socket. `x-heddle-*` of others is removed (DESIGN §10).

use super::fields::{Fields, Known};
use super::framing::Framing;
use super::{Body, RequestHead, ResponseHead, Version};
use crate::Reject;
use crate::syntax::{self, HostPort};

/// The client's side of an exchange, for its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSide {
    /// The version of its request.
    pub version: Version,
    /// Whether the connection should be kept: [`super::Exchange::client_reusable`] and no drain.
    pub keep_alive: bool,
    /// Its request was HEAD.
    pub head: bool,
}

/// How the forwarded response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The framing of its body towards the client.
    pub body: Body,
    /// Whether the client's connection is kept behind it.
    pub keep_alive: bool,
}

/// Turns a parsed request into the one to send upstream over HTTP/1.1: connection options, `h2c` and `x-heddle-*` go, an upgrade and
/// `TE: trailers` stay. `host` fills a missing Host of an HTTP/1.0 request. The answer is the framing to send with.
pub fn forward_request(head: &mut RequestHead, host: &str) -> Result<Body, Reject> {
    let framing = head.framing;
    if framing.hosts == 0 {
        let host = head.authority().unwrap_or(host).to_owned();
        HostPort::parse(host.as_bytes()).ok_or(Reject::HostInvalid)?;
        head.fields.push(b"Host", host.as_bytes());
    }
    if framing.expect && !head.expects_continue() {
        head.fields.remove_known(Known::Expect);
    }
    if framing.hop_by_hop {
        let upgrade = framing.upgrade.is_some();
        let te = framing.te_trailers;
        let options: &[u8] = match (upgrade, te) {
            (true, true) => b"Upgrade, TE",
            (true, false) => b"Upgrade",
            (false, true) => b"TE",
            (false, false) => b"",
        };
        strip(&mut head.fields, &framing, upgrade, te, options);
    }
    Ok(head.body())
}

/// Turns a parsed response, final, interim or 101, into the one for this client. Chunked becomes until-close for HTTP/1.0, until-close
/// becomes chunked for HTTP/1.1.
pub fn forward_response(head: &mut ResponseHead, client: ClientSide) -> Outgoing {
    let framing = head.framing;
    let mut outgoing = Outgoing { body: head.body(), keep_alive: client.keep_alive };
    if head.is_interim() {
        if framing.hop_by_hop {
            strip(&mut head.fields, &framing, false, false, b"");
        }
        return outgoing;
    }
    if outgoing.body == Body::Tunnel {
        outgoing.keep_alive = false;
        if framing.hop_by_hop {
            let upgrade = head.status() == 101;
            strip(&mut head.fields, &framing, upgrade, false, if upgrade { b"Upgrade" } else { b"" });
        }
        return outgoing;
    }
    match (client.version, outgoing.body) {
        (Version::Http10, Body::Chunked) => {
            head.fields.remove_known(Known::TransferEncoding);
            outgoing.body = Body::UntilClose;
        }
        (Version::Http10, _) if framing.chunked => {
            head.fields.remove_known(Known::TransferEncoding);
        }
        (Version::Http11, Body::UntilClose) => {
            head.fields.push(b"Transfer-Encoding", b"chunked");
            outgoing.body = Body::Chunked;
        }
        _ => {}
    }
    outgoing.keep_alive &= outgoing.body != Body::UntilClose;
    // 426 must say what to upgrade to (RFC 9110 §15.5.22); elsewhere Upgrade is an offer that ends at us.
    let upgrade = head.status() == 426 && framing.upgrade.is_some();
    let options: &[u8] = match (outgoing.keep_alive, client.version, upgrade) {
        (false, _, false) => b"close",
        (false, _, true) => b"Upgrade, close",
        (true, Version::Http10, false) => b"keep-alive",
        (true, Version::Http10, true) => b"Upgrade, keep-alive",
        (true, Version::Http11, true) => b"Upgrade",
        (true, Version::Http11, false) => b"",
    };
    if framing.hop_by_hop || !options.is_empty() {
        strip(&mut head.fields, &framing, upgrade, false, options);
    }
    head.set_body(outgoing.body);
    outgoing
}

/// Removes the connection's fields and those it names, and says `options` in Connection.
fn strip(fields: &mut Fields, framing: &Framing, keep_upgrade: bool, keep_te: bool, options: &[u8]) {
    if framing.nominates {
        let named: Vec<Vec<u8>> =
            fields.known(Known::Connection).flat_map(syntax::list).map(<[u8]>::to_ascii_lowercase).collect();
        for name in named {
            if Known::of(&name) == Known::Other {
                fields.remove_named(&name);
            }
        }
    }
    // The very line that came may stay, with its place and case.
    let same = {
        let mut values = fields.known(Known::Connection);
        !options.is_empty()
            && values.next().is_some_and(|value| value.eq_ignore_ascii_case(options))
            && values.next().is_none()
    };
    fields.remove_if(|known| match known {
        Known::Connection => !same,
        Known::KeepAlive | Known::ProxyConnection | Known::Http2Settings | Known::Heddle => true,
        Known::Te => true,
        Known::Upgrade => !keep_upgrade,
        _ => false,
    });
    if keep_upgrade {
        without_h2c(fields);
    }
    if keep_te {
        fields.push(b"TE", b"trailers");
    }
    if !same && !options.is_empty() {
        fields.push(b"Connection", options);
    }
}

/// Leaves `h2c` out of Upgrade (RFC 9113 §3.1).
fn without_h2c(fields: &mut Fields) {
    let is_h2c = |protocol: &&[u8]| protocol.eq_ignore_ascii_case(b"h2c");
    if !fields.known(Known::Upgrade).flat_map(syntax::list).any(|protocol| is_h2c(&protocol)) {
        return;
    }
    let others: Vec<&[u8]> =
        fields.known(Known::Upgrade).flat_map(syntax::list).filter(|protocol| !is_h2c(protocol)).collect();
    let others = others.join(&b", "[..]);
    fields.put(b"Upgrade", &others);
}
