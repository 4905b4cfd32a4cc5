//! The form in which requests' paths are held against policies: a pattern in another form would never match, and nobody would know.
//!
//! The same rules as those that bring a request's path into this form, for patterns: those have no query, and templates have braces.

use crate::node::shortened;

/// Whether a path, or a template of one, is in normal form; if not, what would be right.
pub(super) fn check(path: &str, is_template: bool) -> Result<(), String> {
    let normal = normal(path, is_template).map_err(|why| format!("`{}` {why}", shortened(path)))?;
    if normal == path {
        return Ok(());
    }
    Err(format!("`{}` never matches, as paths are normalized before: write `{normal}`", shortened(path)))
}

fn normal(path: &str, is_template: bool) -> Result<String, &'static str> {
    let bytes = path.as_bytes();
    let mut flat = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        let (byte, is_escaped) = match byte {
            b'%' => {
                let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
                let code = digit(at).zip(digit(at + 1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
                at += 2;
                (code.ok_or("has a `%` without two hexadecimal digits: write `%25` for the character")?, true)
            }
            _ => (byte, false),
        };
        let is_data = b"!$&'()*+,;=:@".contains(&byte) || is_template && b"{}".contains(&byte);
        match byte {
            b'?' | b'#' if !is_escaped => return Err("has a `?` or `#`: a path ends before it, so leave it out"),
            b'/' | b'\\' if !flat.ends_with('/') => flat.push('/'),
            b'/' | b'\\' => {}
            _ if byte.is_ascii_control() => return Err("has a control character: no request with one is let through"),
            _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => flat.push(char::from(byte)),
            _ if is_data && !is_escaped => flat.push(char::from(byte)),
            _ => flat.push_str(&format!("%{byte:02X}")),
        }
    }
    let is_dots = |segment: &str| matches!(segment, "" | "." | "..");
    let has_parameters = |segment: &str| segment.contains(';') || segment.contains("%3B");
    let name = |segment: &'_ str| segment.split(';').next().and_then(|s| s.split("%3B").next()).is_some_and(is_dots);
    if flat.split('/').any(|segment| has_parameters(segment) && name(segment)) {
        return Err("has parameters (`;`) on a segment that is empty or dots: no request with such is let through");
    }
    Ok(without_dots(&flat))
}

/// Without `.` and `..` segments (RFC 3986 §5.2.4).
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_slash = false;
    for segment in path.split('/').skip(1) {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            ".." => drop(kept.pop()),
            "" | "." => {}
            _ => kept.push(segment),
        }
    }
    let end = if ends_in_slash && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms_table() {
        let table = [
            ("/", Ok("/")),
            ("/a", Ok("/a")),
            ("/a/", Ok("/a/")),
            ("/a/b.c/~d_e-f", Ok("/a/b.c/~d_e-f")),
            ("/.well-known/x", Ok("/.well-known/x")),
            ("/a;v=1/b@c:d", Ok("/a;v=1/b@c:d")),
            ("/%C3%A9", Ok("/%C3%A9")),
            ("/a//b", Ok("/a/b")),
            ("//", Ok("/")),
            ("/a/./b", Ok("/a/b")),
            ("/a/../b", Ok("/b")),
            ("/a/..", Ok("/")),
            ("/a/b/..", Ok("/a/")),
            ("/../a", Ok("/a")),
            ("/a/.", Ok("/a/")),
            ("/%61", Ok("/a")),
            ("/%2e%2e/a", Ok("/a")),
            ("/a%2Fb", Ok("/a/b")),
            ("/a%5cb", Ok("/a/b")),
            ("/a\\b", Ok("/a/b")),
            ("/%c3%a9", Ok("/%C3%A9")),
            ("/é", Ok("/%C3%A9")),
            ("/a b", Ok("/a%20b")),
            ("/{a}", Ok("/%7Ba%7D")),
            ("/%252e", Ok("/%252e")),
            ("/a%", Err("has a `%` without")),
            ("/a%2", Err("has a `%` without")),
            ("/a%u0041", Err("has a `%` without")),
            ("/a?b", Err("has a `?` or `#`")),
            ("/a#b", Err("has a `?` or `#`")),
            ("/a%3Fb", Ok("/a%3Fb")),
            ("/..;a/b", Err("has parameters")),
            ("/%2e%3Ba/b", Err("has parameters")),
            ("/;a", Err("has parameters")),
            ("/a%00", Err("has a control character")),
            ("/a\nb", Err("has a control character")),
        ];
        for (path, expected) in table {
            match (normal(path, false), expected) {
                (Ok(found), Ok(expected)) => {
                    assert_eq!(found, expected, "{path}");
                    assert_eq!(normal(&found, false).as_deref(), Ok(expected), "once more changes nothing: {path}");
                }
                (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{path}: {found}"),
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
        assert_eq!(check("/users/{id}/{**}", true), Ok(()));
        let told = "`/users//{id}` never matches, as paths are normalized before: write `/users/{id}`";
        assert_eq!(check("/users//{id}", true), Err(told.to_owned()));
    }
}
