package web

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxPage is how large an answer may be that is no file: the list of a folder.
const maxPage = 4 << 20

// response is an http.ResponseWriter that keeps what it is given. A file it does not read: what http.ServeContent copies to
// a writer it takes as it is, to be read when there is room for it, and keeps the file open.
type response struct {
	header http.Header
	status int
	page   bytes.Buffer
	full   bool              // the page is too large
	body   *io.LimitedReader // the file, behind the page
	files  files
}

// files has what it opened closed by closeAll, and not before.
type files struct {
	fs.FS
	open []fs.File
}

// heldFile is what http.FileServerFS may not close yet.
type heldFile struct {
	fs.File
	io.Seeker
	fs.ReadDirFile
}

func (f heldFile) Close() error                         { return nil }
func (f heldFile) Read(b []byte) (int, error)           { return f.File.Read(b) }
func (f heldFile) Stat() (fs.FileInfo, error)           { return f.File.Stat() }
func (f heldFile) ReadDir(n int) ([]fs.DirEntry, error) { return f.ReadDirFile.ReadDir(n) }

// Open implements fs.FS, whose files can seek and list, as *os.File.
func (f *files) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil {
		return nil, err
	}
	f.open = append(f.open, file)
	seeker, _ := file.(io.Seeker)
	dir, _ := file.(fs.ReadDirFile)
	return heldFile{file, seeker, dir}, nil
}

func (f *files) closeAll() {
	for _, file := range f.open {
		_ = file.Close() // it was only read
	}
	f.open = nil
}

func newResponse(fsys fs.FS) *response {
	return &response{header: make(http.Header), files: files{FS: fsys}}
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

func (w *response) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.page.Len()+len(b) > maxPage {
		w.full = true
		return 0, http.ErrContentLength
	}
	return w.page.Write(b)
}

// ReadFrom implements io.ReaderFrom, which io.CopyN calls.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	if lr, ok := src.(*io.LimitedReader); ok && w.body == nil {
		w.WriteHeader(http.StatusOK)
		w.body = &io.LimitedReader{R: lr.R, N: lr.N}
		return lr.N, nil
	}
	return io.Copy(struct{ io.Writer }{w}, src)
}

// answer has a request answered with the files.
func answer(fsys fs.FS, req *http.Request) *response {
	w := newResponse(fsys)
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.header.Set("Allow", "GET, HEAD")
		http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		return w
	}
	if strings.Contains(req.Header.Get("Range"), ",") {
		req.Header.Del("Range") // several at once, which may be ignored (RFC 9110 14.2), would come through a goroutine
	}
	http.FileServerFS(&w.files).ServeHTTP(w, req)
	if w.full {
		w.files.closeAll()
		w = newResponse(fsys)
		http.Error(w, "the folder has too many files to be listed", http.StatusInsufficientStorage)
	}
	return w
}

// refuse answers what is not a request.
func refuse(status refusal) *response {
	w := newResponse(nil)
	http.Error(w, http.StatusText(int(status)), int(status))
	return w
}

// head is the beginning of the answer: the status line, the header and, unless it was asked for without, the page.
func (w *response) head(req *http.Request, now time.Time, last bool) []byte {
	version, keep := "HTTP/1.1", ""
	if req != nil && !req.ProtoAtLeast(1, 1) {
		version, keep = "HTTP/1.0", "keep-alive"
	}
	if last {
		keep = "close"
	}
	if keep != "" {
		w.header.Set("Connection", keep)
	}
	w.header.Set("Date", now.UTC().Format(http.TimeFormat))
	w.WriteHeader(http.StatusOK)
	bodiless := w.status == http.StatusNotModified || w.status == http.StatusNoContent
	if w.header.Get("Content-Length") == "" && !bodiless && w.body == nil {
		w.header.Set("Content-Length", strconv.Itoa(w.page.Len()))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %03d %s\r\n", version, w.status, http.StatusText(w.status))
	_ = w.header.Write(&b) // to memory
	b.WriteString("\r\n")
	if bodiless || req != nil && req.Method == http.MethodHead {
		w.body = nil
		return b.Bytes()
	}
	b.Write(w.page.Bytes())
	return b.Bytes()
}
