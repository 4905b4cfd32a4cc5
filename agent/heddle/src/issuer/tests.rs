//! Issuers against a real authority in this process.
