//! Which nodes may ask, and how each proves that it is that node: a token of which only the hash is kept, then its certificate.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authority::{SignError, hex, random};
use super::json;

const VERSION: u32 = 1;
/// Most nodes.
pub const NODES_MAX: usize = 10_000;

/// Why a node or the file of nodes is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    /// The text of the file, by field.
    #[error("{0}")]
    Text(String),
    /// A name that no node has.
    #[error("node `{0}`: not a node's name (RFC 1123: a-z, 0-9, `-` and `.`, at most 253 characters)")]
    Name(String),
    /// Too many.
    #[error("more than {NODES_MAX} nodes")]
    TooMany,
    /// Nothing to revoke.
    #[error("node `{0}` has no token")]
    Unknown(String),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] SignError),
}

/// The contents of `nodes.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    version: u32,
    nodes: Vec<Node>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    name: String,
    token_sha256: String,
    /// Seconds since 1970; for people.
    created: u64,
}

impl Node {
    /// As in `spec.nodeName`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When its token was made, since 1970.
    #[must_use]
    pub const fn created(&self) -> Duration {
        Duration::from_secs(self.created)
    }

    /// What the node's certificates bear while this token is its newest: 64 hexadecimal digits. It tells neither the token nor the hash
    /// that is kept of it.
    #[must_use]
    pub fn token_mark(&self) -> String {
        hash(&format!("heddle node certificate\0{}", self.token_sha256))
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self { version: VERSION, nodes: Vec::new() }
    }
}

impl Nodes {
    /// From the text of `nodes.json`.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn parse(text: &str) -> Result<Self, NodesError> {
        let mut nodes: Self = json::parse(text).map_err(NodesError::Text)?;
        if nodes.version != VERSION {
            let version = nodes.version;
            return Err(NodesError::Text(format!("field `version`: {version} is not {VERSION}")));
        }
        if nodes.nodes.len() > NODES_MAX {
            return Err(NodesError::TooMany);
        }
        for (index, node) in nodes.nodes.iter().enumerate() {
            check_name(&node.name)?;
            let is_hash = node.token_sha256.len() == 64
                && node.token_sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !is_hash {
                let why = "is not 64 lower-case hexadecimal digits";
                return Err(NodesError::Text(format!("field `nodes[{index}].token_sha256`: {why}")));
            }
        }
        nodes.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = nodes.nodes.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(NodesError::Text(format!("field `nodes`: node `{}` is there twice", pair[0].name)));
        }
        Ok(nodes)
    }

    /// As it stands in `nodes.json`.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// All, by name.
    #[must_use]
    pub fn all(&self) -> &[Node] {
        &self.nodes
    }

    /// Makes a node's token. What the node had before (token, certificates) counts no more.
    ///
    /// # Errors
    /// No name of a node, or too many.
    pub fn issue(&mut self, name: &str, now: Duration) -> Result<Zeroizing<String>, NodesError> {
        check_name(name)?;
        let token = Zeroizing::new(hex(Zeroizing::new(random::<32>()?).as_slice()));
        let node = Node { name: name.to_owned(), token_sha256: hash(&token), created: now.as_secs() };
        match self.nodes.binary_search_by(|known| known.name.as_str().cmp(name)) {
            Ok(at) => self.nodes[at] = node,
            Err(_) if self.nodes.len() >= NODES_MAX => return Err(NodesError::TooMany),
            Err(at) => self.nodes.insert(at, node),
        }
        Ok(token)
    }

    /// Forgets a node: neither its token nor its certificates count any more.
    ///
    /// # Errors
    /// There is no such node.
    pub fn revoke(&mut self, name: &str) -> Result<(), NodesError> {
        let at = self.nodes.binary_search_by(|known| known.name.as_str().cmp(name));
        let at = at.map_err(|_| NodesError::Unknown(name.to_owned()))?;
        self.nodes.remove(at);
        Ok(())
    }

    /// Whose token this is. Takes as long for every wrong one.
    #[must_use]
    pub fn by_token(&self, token: &str) -> Option<&Node> {
        let presented = hash(token);
        let mut found = None;
        for node in &self.nodes {
            if verify_slices_are_equal(node.token_sha256.as_bytes(), presented.as_bytes()).is_ok() {
                found = Some(node);
            }
        }
        found
    }

    /// The node of a verified certificate that names it and bears the mark of the token it was got by, if that is still the node's token.
    #[must_use]
    pub fn by_certificate(&self, name: &str, token_mark: &str) -> Option<&Node> {
        let at = self.nodes.binary_search_by(|known| known.name.as_str().cmp(name)).ok()?;
        let node = &self.nodes[at];
        (token_mark == node.token_mark()).then_some(node)
    }
}

fn hash(text: &str) -> String {
    hex(digest(&SHA256, text.as_bytes()).as_ref())
}

fn check_name(name: &str) -> Result<(), NodesError> {
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        bytes.first().is_some_and(is_alphanumeric)
            && bytes.last().is_some_and(is_alphanumeric)
            && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
    };
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(NodesError::Name(name.chars().take(253).flat_map(char::escape_default).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn a_token_is_of_one_node_until_it_is_replaced_or_revoked() {
        let mut nodes = Nodes::default();
        let (a, b) = (nodes.issue("node-a", NOW).unwrap(), nodes.issue("node-b", NOW).unwrap());
        assert_eq!(nodes.by_token(&a).map(Node::name), Some("node-a"));
        assert_eq!(nodes.by_token(&b).map(Node::name), Some("node-b"));
        for wrong in ["", "x", &a[1..], &format!("{}0", *a), &a.to_uppercase()] {
            assert_eq!(nodes.by_token(wrong), None, "{wrong}");
        }
        assert!(!nodes.to_text().contains(a.as_str()), "the token itself is not kept");
        let again = nodes.issue("node-a", NOW + Duration::from_secs(100)).unwrap();
        assert_eq!(nodes.by_token(&a), None);
        assert_eq!(nodes.by_token(&again).map(Node::name), Some("node-a"));
        nodes.revoke("node-a").unwrap();
        assert_eq!(nodes.by_token(&again), None);
        assert_eq!(nodes.revoke("node-a"), Err(NodesError::Unknown("node-a".into())));
        assert_eq!(nodes.by_token(&b).map(Node::name), Some("node-b"));
    }

    #[test]
    fn a_certificate_counts_as_long_as_the_token_it_was_got_by() {
        let mut nodes = Nodes::default();
        let token = nodes.issue("a", NOW).unwrap();
        nodes.issue("b", NOW).unwrap();
        let mark = |nodes: &Nodes, at: usize| nodes.all()[at].token_mark();
        let (of_a, of_b) = (mark(&nodes, 0), mark(&nodes, 1));
        assert!(
            of_a.len() == 64 && of_a != *token && !nodes.to_text().contains(&of_a),
            "neither the token nor its hash"
        );
        assert!(nodes.by_certificate("a", &of_a).is_some());
        for (name, mark) in [("a", &*of_b), ("b", &of_a), ("c", &of_a), ("", &of_a), ("a", ""), ("a", &of_a[1..])] {
            assert!(nodes.by_certificate(name, mark).is_none(), "{name} {mark}");
        }
        // However fast one follows the other.
        nodes.issue("a", NOW).unwrap();
        assert!(nodes.by_certificate("a", &of_a).is_none());
        assert!(nodes.by_certificate("a", &mark(&nodes, 0)).is_some() && nodes.by_certificate("b", &of_b).is_some());
        let newest = mark(&nodes, 0);
        nodes.revoke("a").unwrap();
        assert!(nodes.by_certificate("a", &newest).is_none());
    }

    #[test]
    fn text_is_read_back_and_errors_name_the_field() {
        let mut nodes = Nodes::default();
        for name in ["b", "a.example", "a-1"] {
            nodes.issue(name, NOW).unwrap();
        }
        let text = nodes.to_text();
        assert_eq!(Nodes::parse(&text).unwrap(), nodes);
        for (from, to, word) in [
            ("\"version\": 1", "\"version\": 2", "field `version`"),
            ("\"name\": \"b\"", "\"name\": \"B\"", "node `B`"),
            ("\"name\": \"b\"", "\"name\": \"a-1\"", "`a-1` is there twice"),
            ("\"token_sha256\": \"", "\"token_sha256\": \"x", "field `nodes[0].token_sha256`"),
            ("\"created\": 1700000000", "\"created\": \"now\"", "field `created`: invalid type: string \"now\""),
            ("\"created\"", "\"made\"", "unknown field `made`"),
        ] {
            let error = Nodes::parse(&text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(word), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn names_are_those_of_nodes() {
        let mut nodes = Nodes::default();
        for wrong in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a b", "a\n", &"a".repeat(254)] {
            assert!(matches!(nodes.issue(wrong, NOW), Err(NodesError::Name(_))), "{wrong}");
        }
        assert!(nodes.issue("ip-10-0-0-1.eu-west-1.compute.internal", NOW).is_ok());
    }
}
