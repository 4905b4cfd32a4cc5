//! serde over a tree: typed fields out of nodes, and errors that know their path and line.

use std::fmt::{self, Display};

use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::node::{self, Entry, Node, Value};
use crate::problem::Problem;

/// Reads a type from a tree.
pub(crate) fn from_node<'de, T: de::Deserialize<'de>>(node: &'de Node<'_>) -> Result<T, Problem> {
    T::deserialize(node).map_err(|error| error.into_problem(node.line))
}

/// An error on its way up: each level adds its part of the path.
#[derive(Debug)]
pub(crate) struct Error {
    /// Innermost first.
    path: Vec<Segment>,
    line: u64,
    message: String,
}

#[derive(Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

impl Error {
    fn inside(mut self, segment: Segment, line: u64) -> Self {
        self.path.push(segment);
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    fn into_problem(self, line: u64) -> Problem {
        let mut field = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Key(key) => node::join(&mut field, key),
                Segment::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        Problem { field, line: if self.line == 0 { line } else { self.line }, message: self.message }
    }
}

impl de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self { path: Vec::new(), line: 0, message: message.to_string() }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl<'de> de::Deserializer<'de> for &'de Node<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Mapping(entries) => visitor.visit_map(Fields { entries: entries.iter(), current: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                Err(de::Error::custom(format!("must be text, not {}: put it in quotes", self.described())))
            }
            _ => Err(self.expected("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.expected("true or false")),
        }
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Integer(value) => visitor.visit_i64(value),
            _ => Err(self.expected("a whole number")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Float(value) => visitor.visit_f64(value),
            Value::Integer(value) => visitor.visit_i64(value),
            _ => Err(self.expected("a number")),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Sequence(_) => self.deserialize_any(visitor),
            _ => Err(self.expected("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Mapping(_) => self.deserialize_any(visitor),
            _ => Err(self.expected("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum identifier
    }
}

impl Node<'_> {
    fn expected(&self, what: &str) -> Error {
        de::Error::custom(format!("must be {what}, not {}", self.described()))
    }
}

struct Items<'de, 'a> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node<'a>>>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        seed.deserialize(node).map(Some).map_err(|e| e.inside(Segment::Index(index), node.line))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Fields<'de, 'a> {
    entries: std::slice::Iter<'de, Entry<'a>>,
    current: Option<&'de Entry<'a>>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        // A null is an absent field.
        self.current = self.entries.by_ref().find(|entry| entry.node.value != Value::Null);
        let Some(entry) = self.current else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, Error> = entry.key.as_ref().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|e| e.inside(Segment::Key(entry.key.to_string()), entry.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(&entry.node).map_err(|e| e.inside(Segment::Key(entry.key.to_string()), entry.line))
    }
}
