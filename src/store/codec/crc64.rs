//! CRC-64/GO-ISO, the checksum of file contents in tar-split.

/// A running checksum.
#[derive(Clone, Debug)]
pub struct Crc64(crc_fast::Digest);

impl Default for Crc64 {
    fn default() -> Crc64 {
        Crc64::new()
    }
}

impl Crc64 {
    /// Of nothing yet.
    pub fn new() -> Crc64 {
        Crc64(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum so far, as tar-split stores it: big-endian.
    pub fn sum(&self) -> [u8; 8] {
        self.0.finalize().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_iso_polynomial_as_go_computes_it() {
        // hash/crc64: crc64.Checksum([]byte("123456789"), crc64.MakeTable(crc64.ISO)).
        let mut crc = Crc64::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.sum(), 0xb909_56c7_75a4_1001_u64.to_be_bytes());
        assert_eq!(Crc64::new().sum(), [0; 8]);
    }
}
