//! Enrolment: what is wanted, what is, the difference as a list of actions, and one executor that can undo.

mod executor;
mod plan;
mod spec;

pub use executor::{Enrolled, Executor, Family, Listeners, Steps};
pub use plan::{Action, Actual, Desired, Namespace, plan};
pub use spec::PodSpec;
