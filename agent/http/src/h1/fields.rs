//! An ordered list of header fields over one buffer: order and case stay as they were sent; what the codec must know is classified once.

use crate::Reject;

/// Fields the codec or the proxy acts on. Everything else is [`Known::Other`].
#[allow(missing_docs, reason = "the variants are the field names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Known {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    Upgrade,
    Te,
    Trailer,
    Expect,
    Http2Settings,
    Cookie,
    ContentType,
    Date,
    Via,
    /// `x-heddle-*`: set by agents only.
    Heddle,
}

/// Header fields in the order they were sent.
#[derive(Clone, Debug, Default)]
pub struct Fields {}

impl Fields {
    /// Every field as (name, value), in order. Values carry no outer whitespace.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> { [].into_iter() }
    /// The first value of `name` (any case).
    pub fn get(&self, name: &str) -> Option<&[u8]> { todo!() }
    /// All values of `name` (any case), in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> { [].into_iter() }
    /// All values of a known field: cheaper than by name.
    pub fn known(&self, known: Known) -> impl Iterator<Item = &[u8]> { [].into_iter() }
    /// How many fields there are.
    pub fn len(&self) -> usize { todo!() }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool { todo!() }
    /// Adds a field at the end. Fails on bytes that a name or value may not have.
    pub fn append(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reject> { todo!() }
    /// Replaces all fields of that name by one (at the place of the first, else at the end).
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reject> { todo!() }
    /// Removes all fields of that name; says how many there were.
    pub fn remove(&mut self, name: &str) -> usize { todo!() }
    /// Removes all fields of that kind.
    pub fn remove_known(&mut self, known: Known) -> usize { todo!() }
}
