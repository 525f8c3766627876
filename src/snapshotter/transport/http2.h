/*
 * gRPC over HTTP/2 for one connection, without I/O: bytes in, events out; replies in, bytes out.
 *
 * libnghttp2 keeps the protocol's state. These functions add the buffers of each stream, and gRPC's headers, prefixes
 * and trailers. The caller binds the library's functions once, and never calls two functions for the same connection
 * at a time.
 *
 * build_ffi.py derives cffi's declarations from this file.
 */

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The bits of an event's kind. */
#define HTTP2_OPENED 1  /* a call begins: path, timeout, trace */
#define HTTP2_ENDED 2   /* the request, or the answer of a client's call, is complete: body */
#define HTTP2_REFUSED 4 /* the request cannot be answered: why */
#define HTTP2_CLOSED 8  /* the stream ended before the call's answer */
#define HTTP2_ROOM 16   /* the peer has taken all that was sent on the stream */

/* The reasons for HTTP2_REFUSED. */
#define HTTP2_COMPRESSED 1
#define HTTP2_TOO_LARGE 2 /* size is the announced size */
#define HTTP2_SEVERAL 3
#define HTTP2_INCOMPLETE 4
#define HTTP2_BAD_TIMEOUT 5 /* text is the timeout */

/* The number of functions of libnghttp2 that have to be bound; the others are optional. */
#define HTTP2_REQUIRED_FUNCTIONS 33

struct http2_event {
    int32_t stream;
    int32_t kind;
    int32_t why;
    int32_t status;   /* of a client's call: the gRPC status, or -1 without one */
    double timeout;   /* in seconds; -1 without one */
    const char *path; /* of the method */
    const char *trace; /* of a server's call: the header traceparent, empty without one */
    const char *body; /* of a server's call: the message without its prefix; of a client's: all messages with theirs */
    size_t size;      /* of body, in bytes */
    const char *text; /* of a client's call: the percent-encoded message of the status */
};

struct http2_connection {
    struct http2_event *events; /* valid until the next http2_receive or http2_take */
    size_t count;               /* of events */
    const char *output;         /* valid until the next http2_take */
    bool over;                  /* nothing more is to be read; after the last output the connection is to be closed */
    char error[120];            /* the reason, if the peer broke the protocol */
};

/* Return the name of a function of libnghttp2 that has to be bound, or NULL if there are not so many. */
const char *http2_function(size_t index);

/* Bind a function of libnghttp2. NULL means that the library lacks an optional function. */
void http2_bind(size_t index, void *address);

/*
 * Return a new connection of a server, or NULL without memory.
 *
 * max_request is the size limit of a request in bytes, window the limit for all incomplete requests, and max_unread
 * that for the answers that the client does not read.
 */
struct http2_connection *http2_server(uint32_t max_streams, uint32_t max_request, int32_t window, size_t max_unread);

/* Return a new connection of a client with the given receive window, or NULL without memory. */
struct http2_connection *http2_client(int32_t window);

void http2_free(struct http2_connection *connection);

/*
 * Handle bytes of the peer. Return the number of events.
 *
 * The frames of one call in the same bytes make one event, and none if the call is cancelled there. If the peer broke
 * the protocol, connection->over is set.
 */
int64_t http2_receive(struct http2_connection *connection, const char *data, size_t size);

/* Fill connection->output with at most about 64 KiB for the peer. Return their number. Makes events, too. */
int64_t http2_take(struct http2_connection *connection);

/* Answer a call with its only message and status 0. Does nothing if the stream has ended, as the next two functions. */
void http2_reply(struct http2_connection *connection, int32_t stream, const char *message, size_t size);

/* Send one of several messages. Its HTTP2_ROOM event comes when the peer has taken the message. */
void http2_send(struct http2_connection *connection, int32_t stream, const char *message, size_t size);

/* End a call with a status. text is percent-encoded. */
void http2_finish(struct http2_connection *connection, int32_t stream, int status, const char *text);

/*
 * Begin a call of a client with its only message. Return the stream, or -1.
 *
 * headers holds count further names and values, each with its NUL byte.
 */
int32_t http2_request(struct http2_connection *connection, const char *path, const char *headers, size_t count,
                      const char *message, size_t size);

/* End the connection: the last output is a GOAWAY. Output of streams is lost unless it was taken before. */
void http2_terminate(struct http2_connection *connection);

#pragma GCC visibility pop
