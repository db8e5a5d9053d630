//! Foreign dictionaries.

pub mod container;
