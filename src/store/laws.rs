//! The laws of the typed store, held by both machines.
//!
//! Each is named after the invariant of `SPEC.md` that it is about, where there is one, and says
//! which check in `resolve` it stands for: without that check it fails.

mod atomic;
mod feed;
mod grants;
mod ids;
mod leases;
mod paging;
mod prune;
mod reads;
mod wakes;
