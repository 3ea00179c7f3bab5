//! Reading Rust text: what is code, where an item ends, which names a path begins with.

pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1
}

/// Replaces `range` by blanks, and keeps the line ends.
pub(super) fn blank(bytes: &mut [u8], range: std::ops::Range<usize>) {
    for b in &mut bytes[range] {
        if *b != b'\n' {
            *b = b' ';
        }
    }
}

/// Comments and the insides of string and character literals become blanks, byte for byte.
pub(super) fn blank_comments_and_literals(text: &str) -> String {
    let src = text.as_bytes();
    let mut out = src.to_vec();
    let mut at = 0;
    while at < src.len() {
        let end = match src[at] {
            b'/' if src[at..].starts_with(b"//") => end_of_line(src, at),
            b'/' if src[at..].starts_with(b"/*") => end_of_block_comment(src, at),
            b'"' => end_of_string(src, at),
            b'r' if !is_word_before(src, at) || src[at - 1] == b'b' || src[at - 1] == b'c' => {
                end_of_raw_string(src, at)
            }
            b'\'' => end_of_char(src, at),
            _ => at,
        };
        if end > at {
            blank(&mut out, at..end);
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

pub(super) fn is_word_before(src: &[u8], at: usize) -> bool {
    at > 0 && is_word(src[at - 1])
}

pub(super) fn end_of_line(src: &[u8], at: usize) -> usize {
    src[at..]
        .iter()
        .position(|b| *b == b'\n')
        .map_or(src.len(), |n| at + n)
}

pub(super) fn end_of_block_comment(src: &[u8], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < src.len() {
        if src[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if src[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    src.len()
}

pub(super) fn end_of_string(src: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < src.len() {
        match src[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    src.len()
}

/// The end of `r"…"` or `r#"…"#`, or `start` when there is none (an identifier).
pub(super) fn end_of_raw_string(src: &[u8], start: usize) -> usize {
    let hashes = src[start + 1..].iter().take_while(|b| **b == b'#').count();
    if src.get(start + 1 + hashes) != Some(&b'"') {
        return start;
    }
    let close = [b"\"".to_vec(), vec![b'#'; hashes]].concat();
    let body = start + 2 + hashes;
    (body..src.len())
        .find(|at| src[*at..].starts_with(&close))
        .map_or(src.len(), |at| at + close.len())
}

/// The end of `'c'`, or `start` for a lifetime.
pub(super) fn end_of_char(src: &[u8], start: usize) -> usize {
    if src.get(start + 1) == Some(&b'\\') {
        return (start + 3..src.len())
            .find(|at| src[*at] == b'\'')
            .map_or(src.len(), |at| at + 1);
    }
    let longest = (start + 6).min(src.len());
    match (start + 2..longest).find(|at| src[*at] == b'\'') {
        Some(at) if at == start + 2 || src[start + 1] >= 0x80 => at + 1,
        _ => start,
    }
}

/// Blanks every item under `#[cfg(test)]` or `#[test]`; also says how many lines that were.
pub(super) fn blank_tests(code: &str) -> (String, usize) {
    let mut out = code.as_bytes().to_vec();
    let mut lines = 0;
    for attribute in ["#[cfg(test)]", "#[test]"] {
        let mut from = 0;
        while let Some(found) = find_from(&out, attribute.as_bytes(), from) {
            let end = end_of_item(&out, found + attribute.len());
            lines += out[found..end].iter().filter(|b| **b == b'\n').count() + 1;
            blank(&mut out, found..end);
            from = end;
        }
    }
    (String::from_utf8_lossy(&out).into_owned(), lines)
}

pub(super) fn find_from(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    (from..haystack.len().saturating_sub(needle.len() - 1))
        .find(|at| haystack[*at..].starts_with(needle))
}

/// The end of the item that begins at `start`: after its closing brace or its semicolon.
pub(super) fn end_of_item(code: &[u8], start: usize) -> usize {
    let mut nested = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => nested += 1,
            b')' | b']' => nested -= 1,
            b'{' if nested == 0 => return end_of_block(code, at),
            b';' if nested == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The offset after the brace that closes the one at `open`.
pub(super) fn end_of_block(code: &[u8], open: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The offsets of `needle` in `code` where it stands as a whole word at its word ends.
pub(super) fn words<'a>(code: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(needle)
        .map(|(at, _)| at)
        .filter(move |at| {
            let last = at + needle.len();
            let open = is_word(needle.as_bytes()[0]) && is_word_before(bytes, *at);
            let close = is_word(needle.as_bytes()[needle.len() - 1])
                && bytes.get(last).is_some_and(|b| is_word(*b));
            !open && !close
        })
}

/// The identifier at the start of `text`.
pub(super) fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|b| !is_word(b)).unwrap_or(text.len());
    &text[..end]
}

/// The first names of what follows `crate::`: one, or each of a `{…}` group.
pub(super) fn path_heads(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return vec![identifier(rest).to_owned()];
    };
    let (mut depth, mut heads, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(identifier(group[start..at].trim_start()).to_owned());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}
