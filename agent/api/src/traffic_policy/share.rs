//! Which part of all requests something is about: of faults, and of mirrors in routes.

use heddle_model::traffic::Share;

use super::number;
use crate::problem::Problems;

/// Numbers as the Gateway API has them.
const PART_MAX: i64 = i32::MAX as i64;

/// A part of all requests.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("required" = ["numerator"]))]
#[serde(deny_unknown_fields, default)]
pub struct FractionFields {
    /// So many …
    #[schemars(range(min = 0, max = PART_MAX))]
    pub numerator: Option<i64>,
    /// … of so many.
    #[schemars(range(min = 1, max = PART_MAX), extend("default" = 100))]
    pub denominator: Option<i64>,
}

/// `percent` or `fraction` of what is at `path`; all without either.
pub(crate) fn share(
    path: &str,
    percent: Option<i64>,
    fraction: Option<&FractionFields>,
    problems: &mut Problems,
) -> Option<Share> {
    let Some(fraction) = fraction else {
        return match percent {
            None => Some(Share::ALL),
            percent => number(path, "percent", percent, 0..=100, problems).map(|percent| Share::of(percent, 100)),
        };
    };
    let path = format!("{path}.fraction");
    if percent.is_some() {
        problems.error(path.as_str(), "beside `percent`: one or the other");
    }
    if fraction.numerator.is_none() {
        problems.error(format!("{path}.numerator"), "is missing");
    }
    let numerator: u32 = number(&path, "numerator", fraction.numerator, 0..=PART_MAX, problems)?;
    let denominator = match fraction.denominator {
        None => 100,
        denominator => number(&path, "denominator", denominator, 1..=PART_MAX, problems)?,
    };
    if numerator > denominator {
        problems.error(format!("{path}.numerator"), format!("{numerator} is more than `denominator`, {denominator}"));
    }
    Some(Share::of(numerator, denominator))
}
