//! Heads as filters change them, whichever version of HTTP they are of.

use heddle_http::Reject;
use heddle_http::h1::{RequestHead, ResponseHead};
use heddle_model::routing::HeaderEdit;
use http::header::{HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, request};

/// Fields that can be changed.
pub(crate) trait ResponseFields {
    /// In place of all of the name.
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Reject>;
    /// Behind those of the name.
    fn add(&mut self, name: &str, value: &[u8]) -> Result<(), Reject>;
    /// Away with those of the name.
    fn remove(&mut self, name: &str);
}

/// A request's head.
pub(crate) trait Head: ResponseFields {
    /// Path and query as they are.
    fn path_and_query(&self) -> &str;
    /// Others.
    fn set_path_and_query(&mut self, path: &str) -> Result<(), Reject>;
    /// Another host.
    fn set_authority(&mut self, authority: &str) -> Result<(), Reject>;
}

/// Set, add, remove, in this order.
pub(crate) fn apply(edit: &HeaderEdit, head: &mut impl ResponseFields) -> Result<(), Reject> {
    for (name, value) in &edit.set {
        head.set(name, value.as_bytes())?;
    }
    for (name, value) in &edit.add {
        head.add(name, value.as_bytes())?;
    }
    edit.remove.iter().for_each(|name| head.remove(name));
    Ok(())
}

macro_rules! of_http1 {
    ($head:ty) => {
        impl ResponseFields for $head {
            fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
                self.fields_mut().set(name.as_bytes(), value)
            }

            fn add(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
                self.fields_mut().append(name.as_bytes(), value)
            }

            fn remove(&mut self, name: &str) {
                self.fields_mut().remove(name);
            }
        }
    };
}
of_http1!(RequestHead);
of_http1!(ResponseHead);

impl Head for RequestHead {
    fn path_and_query(&self) -> &str {
        Self::path_and_query(self)
    }

    fn set_path_and_query(&mut self, path: &str) -> Result<(), Reject> {
        Self::set_path_and_query(self, path)
    }

    fn set_authority(&mut self, authority: &str) -> Result<(), Reject> {
        Self::set_authority(self, authority)
    }
}

impl ResponseFields for HeaderMap {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
        let (name, value) = field(name, value)?;
        self.insert(name, value);
        Ok(())
    }

    fn add(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
        let (name, value) = field(name, value)?;
        self.append(name, value);
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        Self::remove(self, name);
    }
}

fn field(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), Reject> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Reject::FieldName)?;
    Ok((name, HeaderValue::from_bytes(value).map_err(|_| Reject::FieldValue)?))
}

impl ResponseFields for request::Parts {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
        if name == "host" { self.set_authority(&String::from_utf8_lossy(value)) } else { self.headers.set(name, value) }
    }

    fn add(&mut self, name: &str, value: &[u8]) -> Result<(), Reject> {
        if name == "host" { Err(Reject::HostDuplicate) } else { self.headers.add(name, value) }
    }

    fn remove(&mut self, name: &str) {
        self.headers.remove(name);
    }
}

impl Head for request::Parts {
    fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("", PathAndQuery::as_str)
    }

    fn set_path_and_query(&mut self, path: &str) -> Result<(), Reject> {
        let path = PathAndQuery::try_from(path).map_err(|_| Reject::TargetByte)?;
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.path_and_query = Some(path);
        self.uri = http::Uri::from_parts(parts).map_err(|_| Reject::TargetForm)?;
        Ok(())
    }

    fn set_authority(&mut self, authority: &str) -> Result<(), Reject> {
        let authority = Authority::try_from(authority).map_err(|_| Reject::HostInvalid)?;
        let mut parts = std::mem::take(&mut self.uri).into_parts();
        parts.authority = Some(authority);
        self.uri = http::Uri::from_parts(parts).map_err(|_| Reject::TargetForm)?;
        Ok(())
    }
}
