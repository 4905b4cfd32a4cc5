//! Positive controls: a test that something is refused proves nothing until the same client succeeds elsewhere.

use anyhow::Context;

use crate::client::Outcome;

/// Checks that `attempt` is refused while `control`, the same client with the one difference under test, succeeds,
/// before and after: a network that broke in between refuses everything.
///
/// # Errors
/// The control failed, or the attempt was not refused.
pub fn refused_but(
    what: &str,
    attempt: impl FnOnce() -> anyhow::Result<Outcome>,
    mut control: impl FnMut() -> anyhow::Result<Outcome>,
) -> anyhow::Result<()> {
    control()?.assert_succeeded().with_context(|| format!("positive control of: {what}"))?;
    attempt()?.assert_refused().with_context(|| format!("must be refused: {what}"))?;
    control()?.assert_succeeded().with_context(|| format!("positive control after: {what}"))
}
