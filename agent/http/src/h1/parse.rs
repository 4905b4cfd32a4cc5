//! What request and response parsing share: lines, field lines, limits. A parser keeps its place between reads.

/// How far a parser came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed; call again with the same bytes and more behind them.
    NeedMore,
    /// The head is complete and took this many bytes from the front.
    Complete {
        /// Bytes to drop from the front of the buffer; the body begins behind them.
        consumed: usize,
    },
}
