//! JSON of the authority's own files, with errors that name the field.

use serde::de::DeserializeOwned;

/// Reads `text`; an error says what is wrong, and with which field where that can be told.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| {
        // serde names missing and unknown fields itself; of a wrong value it tells the line only. Here one line is one field.
        let line = error.line().checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
        let field = line.trim_start().strip_prefix('"').and_then(|rest| rest.split_once("\":"));
        match field {
            Some((field, _)) if !error.to_string().contains("field") => format!("field `{field}`: {error}"),
            _ => error.to_string(),
        }
    })
}
