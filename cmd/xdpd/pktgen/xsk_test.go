package pktgen

import (
	"strings"
	"testing"
)

// TestXSKTooLong: frames for which packet memory has no room are refused in words.
func TestXSKTooLong(t *testing.T) {
	_, err := openXSK(&device{}, &Config{Sizes: Sizes{{5000, 1}}}, nil)
	if err == nil || !strings.Contains(err.Error(), "give a --size of at most") {
		t.Errorf("frames of 5000 bytes: %v", err)
	}
}
