package main

import (
	"net"
	"os"
)

// notifyReady tells systemd that a unit of Type=notify is up (sd_notify(3)). Without systemd it does nothing.
func notifyReady() error {
	path := os.Getenv("NOTIFY_SOCKET") // a name that begins with @ is abstract, for Go as well
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}
