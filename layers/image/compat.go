package image

// Compatibility is a number for all that turns a build's result into bytes: the
// same inputs give the same digests in every version of strake that has the
// same number, on every machine. It grows with any change of
//
//   - tar streams of layers (package layers): order, headers, file times;
//   - what a layer consists of: which directories and whiteouts are in it;
//   - compressed bytes (compress.Version);
//   - configurations, histories, manifests and indexes: their fields, order and
//     form.
//
// The order of files in archives is not part of it: that is archiveFormat.
//
// TestCompatibility has digests of an image that hold for it.
const Compatibility = 1
