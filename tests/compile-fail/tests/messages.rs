//! What the compiler says to mistakes with layers, so that a change of a bound does not turn a
//! sentence into a riddle.
//!
//! The texts are those of the compiler named below. With another one the test checks only that the
//! cases do not compile. After an intended change, `TRYBUILD=overwrite` writes the texts anew.

#[rustversion::attr(not(stable(1.95)), ignore = "the texts are those of Rust 1.95")]
#[test]
fn mistakes_of_newcomers_get_a_message_that_says_what_to_write() {
    trybuild::TestCases::new().compile_fail("cases/*.rs");
}
