//! A busy store verifies clean, and every kind of damage is found.

mod clean;
mod damage;
mod of_indexes;
mod of_processes;
