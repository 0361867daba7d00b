//! 9P: messages and a client. Knows only `text`.
