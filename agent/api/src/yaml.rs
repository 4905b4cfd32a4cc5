//! YAML text to trees: each document by itself, so that a bad one costs its siblings nothing.
//!
//! A `---` or `...` at the start of a line ends a document wherever it stands, even inside quotes or a block scalar
//! (YAML 1.2 §9.1.2, `c-forbidden`): splitting before parsing is exact, and no error can swallow what follows it.
//! After a syntax error the tree keeps what came before, so that an object's name and addresses may still be known.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{BorrowedInput, Event, Options, Parser, ScalarStyle, StrInput, Tag};

use crate::node::{self, Entry, Node, Value};
use crate::problem::Problem;

/// Longest file that is read.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Deepest nesting of lists and mappings.
pub const DEPTH_MAX: usize = 64;
/// Most values in one document.
pub const NODES_MAX: usize = 2_000_000;
/// Most values of one document that may come from anchors (`&`) and aliases (`*`): the fuse against alias bombs.
pub const ALIASED_NODES_MAX: usize = 100_000;

/// Most problems told of one document; it is rejected by the first.
const PROBLEMS_MAX: usize = 20;
/// Mappings with fewer keys are searched without an index.
const SCANNED_KEYS_MAX: usize = 16;

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    /// 1-based line in the file where it starts.
    pub(crate) line: u64,
    /// The line after its last.
    pub(crate) end: u64,
    /// The tree, as far as it could be read; `None` for an empty document.
    pub(crate) root: Option<Node<'a>>,
    /// What is wrong with it, in the order found.
    pub(crate) problems: Vec<Problem>,
}

/// The documents of a file, those with nothing but comments left out.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = Document<'_>> {
    pieces(text.strip_prefix('\u{feff}').unwrap_or(text)).filter(|piece| piece.has_content).map(|piece| piece.parse())
}

/// The text of one document.
struct Piece<'a> {
    text: &'a str,
    line: u64,
    end: u64,
    has_content: bool,
}

fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    let mut line = 1;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (start, first_line) = (rest, line);
        let (mut length, mut has_content, mut ended) = (0, false, false);
        for (number, current) in start.split_inclusive('\n').enumerate() {
            if is_marker(current, "...") {
                // Belongs to no document, but to the line count.
                rest = start.get(length + current.len()..).unwrap_or_default();
                line += 1;
                ended = true;
                break;
            }
            if is_marker(current, "---") && number > 0 {
                rest = start.get(length..).unwrap_or_default();
                ended = true;
                break;
            }
            let body = current.strip_prefix("---").filter(|_| number == 0 && is_marker(current, "---"));
            let body = body.unwrap_or(current).trim();
            has_content |= !(body.is_empty() || body.starts_with('#') || current.starts_with('%'));
            length += current.len();
            line += 1;
        }
        if !ended {
            rest = "";
        }
        Some(Piece { text: start.get(..length).unwrap_or_default(), line: first_line, end: line, has_content })
    })
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl<'a> Piece<'a> {
    fn parse(self) -> Document<'a> {
        let mut options = Options::default();
        options.flow_nesting_limit = DEPTH_MAX;
        options.block_nesting_limit = DEPTH_MAX;
        let mut builder = Builder {
            parser: Parser::new_from_str_with_options(self.text, options),
            line: self.line,
            anchors: HashMap::new(),
            nodes: 0,
            aliased: 0,
            problems: Vec::new(),
            ended: false,
        };
        let root = builder.document();
        Document { line: self.line, end: self.end, root, problems: builder.problems }
    }
}

struct Builder<'a, T: BorrowedInput<'a>> {
    parser: Parser<'a, T>,
    /// Of the piece in the file.
    line: u64,
    /// What each anchor stands for, and how many nodes that is.
    anchors: HashMap<usize, (Node<'a>, usize)>,
    nodes: usize,
    aliased: usize,
    problems: Vec<Problem>,
    /// Nothing more comes: the end, a syntax error or a limit. Open containers close with what they have.
    ended: bool,
}

impl<'a> Builder<'a, StrInput<'a>> {
    fn document(&mut self) -> Option<Node<'a>> {
        let mut root = None;
        while let Some((event, line)) = self.next() {
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd | Event::StreamEnd => {}
                _ if root.is_none() => root = Some(self.node(event, line, 0)),
                _ => {}
            }
        }
        root
    }

    fn next(&mut self) -> Option<(Event<'a>, u64)> {
        if self.ended {
            return None;
        }
        match self.parser.next_event() {
            Some(Ok((event, span))) => Some((event, self.line_at(span.start.line()))),
            Some(Err(error)) => {
                let line = self.line_at(error.marker().line());
                self.stop(line, format!("not YAML: {}", error.info()));
                None
            }
            None => {
                self.ended = true;
                None
            }
        }
    }

    fn node(&mut self, event: Event<'a>, line: u64, depth: usize) -> Node<'a> {
        let before = self.nodes;
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            self.stop(line, format!("more than {NODES_MAX} values in one document: split it"));
        }
        if depth > DEPTH_MAX {
            self.stop(line, format!("nested deeper than {DEPTH_MAX}"));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (self.scalar(text, style, tag.as_deref(), line), anchor),
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", line);
                (self.sequence(depth), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", line);
                (self.mapping(depth), anchor)
            }
            Event::Alias(id) => (self.alias(id, line), 0),
            _ => (Value::Null, 0),
        };
        let node = Node { line, value };
        if anchor != 0 {
            let size = self.nodes - before;
            if self.spend_on_aliases(size, line) {
                self.anchors.insert(anchor, (node.clone(), size));
            }
        }
        node
    }

    fn sequence(&mut self, depth: usize) -> Value<'a> {
        let mut items = Vec::new();
        while let Some((event, line)) = self.next() {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, line, depth + 1));
        }
        Value::Sequence(items)
    }

    fn mapping(&mut self, depth: usize) -> Value<'a> {
        let mut entries: Vec<Entry<'a>> = Vec::new();
        // Few keys are looked up by looking; the index is for mappings made to be slow.
        let mut index: HashMap<Cow<'a, str>, u64> = HashMap::new();
        while let Some((event, line)) = self.next() {
            if event == Event::MappingEnd {
                break;
            }
            let key = match &event {
                Event::Scalar(text, ..) => Some(text.clone()),
                _ => None,
            };
            let key_node = self.node(event, line, depth + 1);
            let key = key.or_else(|| key_node.text().map(|text| Cow::Owned(text.to_owned())));
            let Some((event, value_line)) = self.next() else { break };
            let node = self.node(event, value_line, depth + 1);
            match key {
                None => self.problem(line, "a key must be text"),
                Some(key) if key == "<<" => {
                    self.problem(line, "merge keys (`<<`) are not supported: write the fields out");
                }
                Some(key) => {
                    let first = if entries.len() < SCANNED_KEYS_MAX {
                        entries.iter().find(|e| e.key == key).map(|e| e.line)
                    } else {
                        if index.is_empty() {
                            index.extend(entries.iter().map(|e| (e.key.clone(), e.line)));
                        }
                        index.get(&key).copied()
                    };
                    if let Some(first) = first {
                        self.problem(line, &node::twice(&key, first));
                        entries.iter_mut().filter(|e| e.key == key).for_each(|e| e.is_contested = true);
                        continue;
                    }
                    if !index.is_empty() {
                        index.insert(key.clone(), line);
                    }
                    entries.push(Entry { key, line, node, is_contested: false });
                }
            }
        }
        Value::Mapping(entries)
    }

    fn alias(&mut self, id: usize, line: u64) -> Value<'a> {
        let size = match self.anchors.get(&id) {
            Some((_, size)) => *size,
            None => {
                self.problem(line, "an alias (`*`) inside its own anchor (`&`)");
                return Value::Null;
            }
        };
        if !self.spend_on_aliases(size, line) {
            return Value::Null;
        }
        self.nodes += size;
        self.anchors.get(&id).map_or(Value::Null, |(node, _)| node.value.clone())
    }

    fn spend_on_aliases(&mut self, nodes: usize, line: u64) -> bool {
        self.aliased += nodes;
        if self.aliased > ALIASED_NODES_MAX {
            self.stop(
                line,
                format!("anchors and aliases stand for more than {ALIASED_NODES_MAX} values: write them out"),
            );
        }
        self.aliased <= ALIASED_NODES_MAX
    }

    fn scalar(&mut self, text: Cow<'a, str>, style: ScalarStyle, tag: Option<&Tag>, line: u64) -> Value<'a> {
        if style != ScalarStyle::Plain || tag.is_some_and(|t| t.core_suffix() == Some("str")) {
            return Value::String(text);
        }
        let value = resolve(text);
        let of_kind = match &value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Integer(_) => "int",
            _ => "float",
        };
        self.check_tag(tag, of_kind, line);
        value
    }

    fn check_tag(&mut self, tag: Option<&Tag>, expected: &str, line: u64) {
        if let Some(tag) = tag
            && tag.core_suffix() != Some(expected)
        {
            self.problem(line, &format!("the tag `{}` is not supported here: remove it", tag.original()));
        }
    }

    fn problem(&mut self, line: u64, message: &str) {
        self.problems.push(Problem { field: String::new(), line, message: message.to_owned() });
        if self.problems.len() >= PROBLEMS_MAX {
            self.ended = true;
        }
    }

    fn stop(&mut self, line: u64, message: String) {
        if !self.ended {
            self.ended = true;
            self.problems.push(Problem { field: String::new(), line, message });
        }
    }

    fn line_at(&self, line: usize) -> u64 {
        self.line + (line as u64).saturating_sub(1)
    }
}

/// The type of a plain scalar, by YAML 1.2's core schema without octal and hexadecimal numbers.
fn resolve(text: Cow<'_, str>) -> Value<'_> {
    match text.as_ref() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(&text);
    let starts_as_number = unsigned.starts_with(|c: char| c.is_ascii_digit());
    let zero_led = unsigned.len() > 1 && unsigned.starts_with('0') && unsigned.bytes().all(|b| b.is_ascii_digit());
    if !starts_as_number || zero_led {
        return Value::String(text);
    }
    if let Ok(number) = text.parse() {
        return Value::Integer(number);
    }
    let float_like = unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse() {
        Ok(number) if float_like => Value::Float(number),
        _ => Value::String(text),
    }
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
