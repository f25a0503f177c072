//! When and as what a call is settled, frame by frame; and what the endings answer.

mod answers;
mod outcomes;
mod recorder;
