//! lash-sqlite-store links libsqlite3-sys 0.35, and duroxide, through sqlx 0.8, libsqlite3-sys 0.30.
//! Both are the same C library, of which a program can hold only one. So the second is the first
//! under the other version: every peer that is built on SQLite runs on the same SQLite.

pub use linked::*;
