//! Why a message is not accepted: one name per rule. As a request it is answered with [`Reject::status`]; as a response it is
//! always a 502 to the client, and the upstream connection is closed.

use std::fmt;

use heddle_telemetry::Reason;

macro_rules! rejects {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal, $status:literal;)+) => {
        /// A rule that a message broke. [`Reject::as_str`] is the word for logs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reject {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reject {
            /// Every rule, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable snake_case word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The rule, for messages.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }

            /// The status a *request* that broke the rule is answered with (400, 414, 417, 431, 501 or 505).
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }
        }
    };
}

rejects! {
    /// A line ends in LF without CR (RFC 9112 §2.2).
    BareLf = "bare_lf", 400;
    /// CR without LF (RFC 9112 §2.2).
    BareCr = "bare_cr", 400;
    /// More empty lines before the request than are ignored (RFC 9112 §2.2).
    LeadingBytes = "leading_bytes", 400;
    /// Not `method SP target SP version` (RFC 9112 §3).
    RequestLine = "request_line", 400;
    /// The method is not a token (RFC 9110 §9.1).
    Method = "method", 400;
    /// The method is longer than any known one (RFC 9112 §3).
    MethodTooLong = "method_too_long", 501;
    /// A byte that no request target may have (RFC 9112 §3.2).
    TargetByte = "target_byte", 400;
    /// The form of the target does not suit the method, or it is no target at all (RFC 9112 §3.2).
    TargetForm = "target_form", 400;
    /// The request target or line is too long (RFC 9112 §3).
    TargetTooLong = "target_too_long", 414;
    /// Not `HTTP/` DIGIT `.` DIGIT (RFC 9112 §2.3).
    Version = "version", 400;
    /// A version other than 1.0 and 1.1 (RFC 9110 §15.6.6).
    VersionUnsupported = "version_unsupported", 505;
    /// The response's first line is not `HTTP/1.x SP 3DIGIT SP reason` (RFC 9112 §4).
    StatusLine = "status_line", 400;
    /// The status is outside 100 to 599, or may not be used here (RFC 9110 §15).
    Status = "status", 400;

    /// A field line has no colon, or an empty name (RFC 9112 §5).
    FieldLine = "field_line", 400;
    /// A byte that no field name may have (RFC 9110 §5.6.2).
    FieldName = "field_name", 400;
    /// Whitespace before the colon (RFC 9112 §5.1).
    SpaceBeforeColon = "space_before_colon", 400;
    /// A control byte in a field value (RFC 9110 §5.5).
    FieldValue = "field_value", 400;
    /// A field line that continues the one before, or whitespace before the first (RFC 9112 §5.2, §2.2).
    ObsFold = "obs_fold", 400;
    /// The head is too large (RFC 6585 §5).
    HeadTooLarge = "head_too_large", 431;
    /// Too many fields (RFC 6585 §5).
    TooManyFields = "too_many_fields", 431;

    /// HTTP/1.1 without Host (RFC 9112 §3.2).
    HostMissing = "host_missing", 400;
    /// More than one Host (RFC 9112 §3.2).
    HostDuplicate = "host_duplicate", 400;
    /// Host is not `uri-host [ ":" port ]` (RFC 9110 §7.2).
    HostInvalid = "host_invalid", 400;
    /// The target's authority and Host differ (RFC 9112 §3.2.2; stricter: both sides of us would have to agree which one counts).
    HostMismatch = "host_mismatch", 400;

    /// Content-Length is not a run of digits (RFC 9110 §8.6).
    ContentLengthInvalid = "content_length_invalid", 400;
    /// More than one Content-Length, equal or not (RFC 9112 §6.3; equal ones may be refused, and are).
    ContentLengthDuplicate = "content_length_duplicate", 400;
    /// Both Content-Length and Transfer-Encoding (RFC 9112 §6.1).
    LengthAndEncoding = "length_and_encoding", 400;
    /// Transfer-Encoding in or towards HTTP/1.0 (RFC 9112 §6.1).
    EncodingInHttp10 = "encoding_in_http10", 400;
    /// A transfer coding other than chunked (RFC 9112 §6.1).
    EncodingUnknown = "encoding_unknown", 501;
    /// chunked is not the only and last coding, or Transfer-Encoding is malformed (RFC 9112 §6.1).
    EncodingInvalid = "encoding_invalid", 400;
    /// A field that frames or routes where the message may have none: in 1xx, 204 or 2xx to CONNECT (RFC 9110 §8.6, RFC 9112 §6.1).
    FramingForbidden = "framing_forbidden", 400;
    /// Connection is malformed or names a field that frames or routes the message (RFC 9110 §7.6.1).
    ConnectionOption = "connection_option", 400;
    /// Upgrade is malformed, or an upgrade has a body or another method than GET (RFC 9110 §7.8, RFC 6455 §4.1).
    UpgradeInvalid = "upgrade_invalid", 400;
    /// An expectation other than 100-continue (RFC 9110 §10.1.1).
    ExpectationUnknown = "expectation_unknown", 417;

    /// A chunk's size line is malformed (RFC 9112 §7.1).
    ChunkSize = "chunk_size", 400;
    /// A chunk size beyond 64 bits (RFC 9112 §7.1).
    ChunkSizeOverflow = "chunk_size_overflow", 400;
    /// A chunk extension is malformed or too long (RFC 9112 §7.1.1).
    ChunkExtension = "chunk_extension", 400;
    /// No CRLF behind a chunk's data (RFC 9112 §7.1).
    ChunkEnd = "chunk_end", 400;
    /// A field that may not stand in a trailer section (RFC 9110 §6.5.1).
    TrailerForbidden = "trailer_forbidden", 400;
    /// The trailer section is too large.
    TrailerTooLarge = "trailer_too_large", 431;
    /// The body ended before its framing said so (RFC 9112 §8).
    BodyIncomplete = "body_incomplete", 400;
    /// More body than its declared length (RFC 9113 §8.1.1).
    BodyTooLong = "body_too_long", 400;

    /// 101 that nobody asked for, or for another protocol (RFC 9110 §15.2.2).
    UpgradeUnasked = "upgrade_unasked", 400;
    /// Too many interim responses.
    TooManyInterim = "too_many_interim", 400;
    /// Bytes from the upstream before any request, or behind a complete response (RFC 9112 §9.2).
    UnexpectedBytes = "unexpected_bytes", 400;
    /// The upstream closed before or inside a response head.
    HeadIncomplete = "head_incomplete", 400;

    /// A pseudo-header is missing, repeated, unknown or malformed (RFC 9113 §8.3).
    PseudoHeader = "pseudo_header", 400;
    /// Extended CONNECT for a protocol other than WebSocket (RFC 8441 §4).
    ProtocolUnknown = "protocol_unknown", 501;
    /// WebSocket for a server that speaks HTTP/2 and does not take extended CONNECT (RFC 8441 §3).
    ExtendedConnect = "extended_connect", 501;
    /// gRPC for a server that is called with HTTP/1: gRPC is defined on HTTP/2 alone.
    GrpcOverHttp1 = "grpc_over_http1", 501;
    /// 2xx other than 101 to an upgrade: over HTTP/2 it would say that the tunnel is there (RFC 8441 §5).
    UpgradeDeclined = "upgrade_declined", 400;
    /// A field of the connection in HTTP/2 (RFC 9113 §8.2.2).
    ConnectionField = "connection_field", 400;
    /// TE other than `trailers` in HTTP/2 (RFC 9113 §8.2.2).
    TeInvalid = "te_invalid", 400;
}

impl Reject {
    /// The reason for log and metrics when a *request* broke the rule.
    #[must_use]
    pub const fn request_reason(self) -> Reason {
        match self.status() {
            414 => Reason::RequestTargetTooLong,
            417 => Reason::RequestExpectation,
            431 => Reason::RequestHeadTooLarge,
            501 => Reason::RequestNotImplemented,
            505 => Reason::RequestVersion,
            _ => Reason::RequestMalformed,
        }
    }

    /// The reason when a *response* broke it; the client gets 502.
    #[must_use]
    pub const fn response_reason(self) -> Reason {
        match self {
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailerTooLarge => Reason::ResponseHeadTooLarge,
            Self::BodyIncomplete | Self::HeadIncomplete => Reason::ResponseIncomplete,
            _ => Reason::ResponseMalformed,
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Reject {}
