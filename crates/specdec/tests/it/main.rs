//! Drafting on real text, without a model: a transcript says what a target would have said.

mod replay;
