//go:build !race

package seeds

// raceDetector says whether the race detector is on: such runs are shorter.
const raceDetector = false
