//! Byte classes of RFC 9110 §5.6 and RFC 3986, as tables.
