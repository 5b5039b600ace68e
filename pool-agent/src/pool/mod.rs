//! Pools of sandboxes that wait to be claimed: what one is, what becomes of a member, how many there should be. All pure, with the
//! time handed in; what is decided here is done by others.
//!
//! Reading order: [`template`] (what is asked for), [`member`] (phase after phase), [`target`] (how many), [`attempts`] (when to try
//! again), [`reconcile`] (what to do now); [`file`](mod@file) reads pools.d.

pub mod attempts;
pub mod file;
pub mod member;
pub mod reconcile;
pub mod target;
pub mod template;

#[cfg(test)]
mod model;
