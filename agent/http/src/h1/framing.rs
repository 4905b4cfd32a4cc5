//! What the fields of a head say about framing, connection and upgrade (RFC 9112 §6, §9; RFC 9110 §7.6.1, §7.8).

use super::fields::{Fields, Known};
use super::request::{Upgrade, Version};
use crate::Reject;
use crate::syntax;

/// Fields that `Connection` may not name: without them the next hop would see another message, or another caller.
const NOT_HOP_BY_HOP: &[Known] = &[
    Known::Host,
    Known::ContentLength,
    Known::TransferEncoding,
    Known::Expect,
    Known::Trailer,
    Known::Cookie,
    Known::Authorization,
    Known::ContentType,
];

/// One pass over the fields.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Framing {
    pub(super) content_length: Option<u64>,
    pub(super) chunked: bool,
    /// `Connection: close`.
    pub(super) close: bool,
    /// `Connection: keep-alive`.
    pub(super) keep_alive: bool,
    /// `Connection: upgrade`.
    pub(super) upgrade_option: bool,
    /// The protocol offered or chosen, `h2c` left out.
    pub(super) upgrade: Option<Upgrade>,
    /// `TE` has the member `trailers`.
    pub(super) te_trailers: bool,
    /// `Connection` names fields beyond the usual ones.
    pub(super) nominates: bool,
    /// Connection, or another field of the connection, is there: the head cannot be passed on untouched.
    pub(super) hop_by_hop: bool,
    /// Expect is there, and it is `100-continue`.
    pub(super) expect: bool,
    /// `Content-Length` or `Transfer-Encoding` is not spelt as the codec would: leading zeros, other case.
    pub(super) respell: bool,
    /// Number of Host fields.
    pub(super) hosts: u32,
}

impl Framing {
    pub(super) fn of_request(fields: &Fields, version: Version) -> Result<Self, Reject> {
        Self::of(fields, version, true)
    }

    pub(super) fn of_response(fields: &Fields, version: Version) -> Result<Self, Reject> {
        Self::of(fields, version, false)
    }

    fn of(fields: &Fields, version: Version, is_request: bool) -> Result<Self, Reject> {
        let mut framing = Self::default();
        let mut encodings = 0;
        for (known, _, value) in fields.iter_known() {
            match known {
                Known::Expect if is_request => {
                    if framing.expect || !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Reject::ExpectationUnknown);
                    }
                    framing.expect = true;
                }
                Known::Other | Known::Cookie | Known::ContentType | Known::Authorization => {}
                Known::Trailer | Known::Expect => {}
                Known::Host => framing.hosts += 1,
                Known::ContentLength => {
                    if framing.content_length.is_some() {
                        return Err(Reject::ContentLengthDuplicate);
                    }
                    framing.content_length = Some(content_length(value)?);
                    framing.respell |= value.len() > 1 && value[0] == b'0';
                }
                Known::TransferEncoding => {
                    encodings += 1;
                    if encodings > 1 {
                        return Err(Reject::EncodingInvalid);
                    }
                    transfer_encoding(value)?;
                    framing.chunked = true;
                    framing.respell |= value != b"chunked";
                }
                Known::Connection => {
                    framing.hop_by_hop = true;
                    framing.connection(value)?;
                }
                Known::Upgrade => {
                    framing.hop_by_hop = true;
                    framing.upgrade(value)?;
                }
                Known::Te => {
                    framing.hop_by_hop = true;
                    framing.te_trailers |= syntax::list(value).any(|member| member.eq_ignore_ascii_case(b"trailers"));
                }
                Known::KeepAlive | Known::ProxyConnection | Known::Http2Settings | Known::Heddle => {
                    framing.hop_by_hop = true;
                }
            }
        }
        if framing.chunked && version == Version::Http10 {
            return Err(Reject::EncodingInHttp10);
        }
        if framing.chunked && framing.content_length.is_some() {
            return Err(Reject::LengthAndEncoding);
        }
        if !framing.upgrade_option || version == Version::Http10 {
            framing.upgrade = None;
        }
        Ok(framing)
    }

    /// Whether the connection outlives the message (RFC 9112 §9.3).
    pub(super) fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    fn connection(&mut self, value: &[u8]) -> Result<(), Reject> {
        for option in syntax::list(value) {
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if !syntax::is_token(option) {
                return Err(Reject::ConnectionOption);
            } else {
                match Known::of(option) {
                    Known::Upgrade => self.upgrade_option = true,
                    Known::Te | Known::Http2Settings | Known::KeepAlive | Known::Connection => {}
                    known if NOT_HOP_BY_HOP.contains(&known) => return Err(Reject::ConnectionOption),
                    _ => self.nominates = true,
                }
            }
        }
        Ok(())
    }

    /// `protocol-name [ "/" protocol-version ]`, comma-separated.
    fn upgrade(&mut self, value: &[u8]) -> Result<(), Reject> {
        for protocol in syntax::list(value) {
            if !protocol.splitn(2, |&b| b == b'/').all(syntax::is_token) {
                return Err(Reject::UpgradeInvalid);
            }
            if protocol.eq_ignore_ascii_case(b"h2c") {
                continue;
            }
            let upgrade = if protocol.eq_ignore_ascii_case(b"websocket") { Upgrade::WebSocket } else { Upgrade::Other };
            if self.upgrade.is_some_and(|other| other != upgrade) {
                // A choice between protocols with different rules for body and method.
                return Err(Reject::UpgradeInvalid);
            }
            self.upgrade = Some(upgrade);
        }
        Ok(())
    }
}

/// Digits and nothing else; beyond 63 bits many peers would wrap.
pub(crate) fn content_length(value: &[u8]) -> Result<u64, Reject> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Reject::ContentLengthInvalid);
    }
    value
        .iter()
        .try_fold(0u64, |length, digit| length.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .filter(|length| *length <= i64::MAX as u64)
        .ok_or(Reject::ContentLengthInvalid)
}

/// `chunked`, once.
fn transfer_encoding(value: &[u8]) -> Result<(), Reject> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // Which rule was broken: a malformed list or a wrong order is an error of the sender, an unknown coding is a gap of ours.
    let mut members = value.split(|&b| b == b',').map(syntax::trim);
    let is_chunked = |member: &[u8]| member.eq_ignore_ascii_case(b"chunked");
    let name = |member: &[u8]| syntax::trim(member.split(|&b| b == b';').next().unwrap_or_default()).to_vec();
    let well_formed = members.clone().all(|member| syntax::is_token(&name(member)));
    let times = members.clone().filter(|member| is_chunked(&name(member))).count();
    let last = members.next_back().is_some_and(is_chunked);
    Err(if well_formed && times == 1 && last { Reject::EncodingUnknown } else { Reject::EncodingInvalid })
}
