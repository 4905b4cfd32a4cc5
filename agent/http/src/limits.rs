//! The limits of a message's head and framing, each with its default. A message beyond one is rejected by name ([`crate::Reject`]).

/// What one message may cost before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head: start line, fields and the empty line. Beyond: 431, or 502 for a response. Default 64 KiB.
    pub head_bytes_max: usize,
    /// Field lines of a head. Beyond: 431, or 502. Default 100.
    pub fields_max: usize,
    /// Bytes of a request target. Beyond: 414. Default 16 KiB.
    pub target_bytes_max: usize,
    /// Bytes of the empty lines a client may send before its request line (RFC 9112 §2.2). Beyond: 400. Default 8 (four lines).
    pub leading_bytes_max: usize,
    /// Bytes of one chunk's size line, extensions included. Beyond: 400. Default 256.
    pub chunk_line_bytes_max: usize,
    /// Bytes of all chunk extensions of one body: what hides between small chunks costs CPU and carries nothing. Beyond: 400.
    /// Default 16 KiB.
    pub chunk_extension_bytes_max: usize,
    /// Bytes of a trailer section. Beyond: 431. Default 16 KiB.
    pub trailer_bytes_max: usize,
    /// Field lines of a trailer section. Beyond: 431. Default 64.
    pub trailer_fields_max: usize,
    /// Interim (1xx) responses before the final one. Beyond: 502. Default 16.
    pub interim_responses_max: u32,
}

impl Limits {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        head_bytes_max: 64 * 1024,
        fields_max: 100,
        target_bytes_max: 16 * 1024,
        leading_bytes_max: 8,
        chunk_line_bytes_max: 256,
        chunk_extension_bytes_max: 16 * 1024,
        trailer_bytes_max: 16 * 1024,
        trailer_fields_max: 64,
        interim_responses_max: 16,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
